"""What the official scorers let pass: counted and told, or, when strict, refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UserError


@dataclass
class Oddities:
    """Counts of each kind of oddity, with the first place of each.

    Attributes:
        strict: raise at the first one instead.
    """

    strict: bool = False
    _found: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, place: str) -> None:
        """Take one down.

        Args:
            kind: what is odd and what comes of it, for any number of places.
            place: where, e.g. "results entry 3".

        Raises:
            UserError: if strict.
        """
        if self.strict:
            raise UserError(f"{place}: {kind}")
        self._found.setdefault(kind, []).append(place)

    def lines(self) -> list[str]:
        """One line per kind."""
        return [
            f"{places[0]}: {kind}" + (f" ({len(places)} such places)" if len(places) > 1 else "")
            for kind, places in self._found.items()
        ]
