"""What a technique is given."""

from paretune.build.technique import Fit


def test_the_result_has_a_directory_of_its_own_made_on_first_use(tmp_path):
    fit = Fit(None, None, None, 0, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    assert fit.out == fit.out == tmp_path / "scratch" / "out"
    assert fit.out.is_dir()
    fit.progress(0.5, "half")
