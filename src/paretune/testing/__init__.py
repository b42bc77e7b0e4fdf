"""Conformance suites for sources, techniques and targets: the project's own pass them, and a third party's should.

A suite is a class of tests in pytest's manner. A third party's test file needs three lines::

    from paretune.testing import TechniqueConformance

    class TestMine(TechniqueConformance):
        technique = MyTechnique

Nothing here imports pytest, so any runner that calls ``test_`` methods and fills a ``tmp_path`` argument will do.
"""

from paretune.testing.sources import SourceConformance
from paretune.testing.targets import TargetConformance
from paretune.testing.techniques import TechniqueConformance

__all__ = ["SourceConformance", "TargetConformance", "TechniqueConformance"]
