"""Unusual input that the official scorers accept: counted per kind and reported as warnings, or refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UserError


@dataclass
class Oddities:
    """Counts of each kind of oddity, with the first place of each.

    Attributes:
        strict: raise an error at the first oddity.
    """

    strict: bool = False
    _places: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, place: str) -> None:
        """Counts one oddity.

        Args:
            kind: what is unusual and how it is scored; the same text for all places.
            place: where it was found, e.g. "results entry 3".

        Raises:
            UserError: if strict.
        """
        if self.strict:
            raise UserError(f"{place}: {kind}. Correct it, or score without --strict")
        self._places.setdefault(kind, []).append(place)

    def lines(self) -> list[str]:
        """One line per kind."""
        return [
            f"{places[0]}: {kind}" + (f" ({len(places)} such places)" if len(places) > 1 else "")
            for kind, places in self._places.items()
        ]
