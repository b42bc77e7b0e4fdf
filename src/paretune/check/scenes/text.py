"""Text: strings, before a workload's ``collate`` makes numbers of them."""

from __future__ import annotations

import numpy as np

from paretune.check.scenario import scenario

Rng = np.random.Generator
SHARES = (0.02, 0.05, 0.10, 0.15, 0.25)


def _meant(count: int, rng: Rng, share: float) -> set[int]:
    """Places: ``share`` of them on average, at least one where there is any."""
    drawn = rng.random(count)
    return {place for place in range(count) if drawn[place] < share or drawn[place] == drawn.min()}


@scenario("text", "text", SHARES)
def typos(text: str, rng: Rng, strength: float) -> str:
    """Letters change places with the next, are missing, or stand twice."""
    letters = [place for place, letter in enumerate(text) if letter.isalpha()]
    meant = {letters[place] for place in _meant(len(letters), rng, strength)}
    kinds = rng.integers(0, 3, len(text))
    out: list[str] = []
    for place, letter in enumerate(text):
        if place not in meant:
            out.append(letter)
        elif kinds[place] == 0 and out:
            out.insert(len(out) - 1, letter)
        elif kinds[place] == 1:
            out.append(letter * 2)
    return "".join(out) or text


@scenario("text", "text", (0.9, 0.75, 0.5, 0.3, 0.15))
def truncated(text: str, rng: Rng, strength: float) -> str:
    """Only the first words arrive."""
    words = text.split()
    return " ".join(words[: max(1, round(len(words) * strength))])


@scenario("text", "text", (0.05, 0.10, 0.20, 0.30, 0.45))
def nonsense_words(text: str, rng: Rng, strength: float) -> str:
    """Words nobody knows: their letters are shuffled."""
    words = text.split()
    for place in sorted(_meant(len(words), rng, strength)):
        words[place] = "".join(rng.permutation(list(words[place])))
    return " ".join(words)


@scenario("text", "text")
def upper_case(text: str, rng: Rng) -> str:
    """All in capitals."""
    return text.upper()


@scenario("text", "text")
def lower_case(text: str, rng: Rng) -> str:
    """No capitals."""
    return text.lower()


@scenario("text", "text", (0.1, 0.3, 0.5))
def mixed_case(text: str, rng: Rng, strength: float) -> str:
    """Letters in the other case."""
    meant = _meant(len(text), rng, strength)
    return "".join(letter.swapcase() if place in meant else letter for place, letter in enumerate(text))


@scenario("text", "text")
def no_punctuation(text: str, rng: Rng) -> str:
    """Letters, digits and spaces alone."""
    return "".join(letter for letter in text if letter.isalnum() or letter.isspace())


@scenario("text", "text")
def wide_spaces(text: str, rng: Rng) -> str:
    """Two spaces between words, and one at either end."""
    return f" {'  '.join(text.split())} "
