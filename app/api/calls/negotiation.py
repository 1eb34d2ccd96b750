"""Which of the media types on offer a client likes best (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

from app.core.errors import NotAcceptable


def choose(accept: str | None, offers: Sequence[str]) -> str:
    """The offer with the highest weight; among equals the one offered first. Raises NotAcceptable."""
    ranges = _ranges(accept) if accept and accept.strip() else [("*", "*", 1.0)]
    best = max(offers, key=lambda offer: _weight(offer, ranges))
    if _weight(best, ranges) <= 0:
        raise NotAcceptable(
            "None of the accepted media types can be given here.", remedy=f"Accept {', '.join(offers)}."
        )
    return best


def _ranges(accept: str) -> list[tuple[str, str, float]]:
    found = []
    for part in accept[:4096].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        main, slash, sub = media.partition("/")
        if media == "*":
            main, slash, sub = "*", "/", "*"
        if slash and main and sub:
            found.append((main, sub, _quality(parameters)))
    return found


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def _weight(offer: str, ranges: list[tuple[str, str, float]]) -> float:
    """The weight of the most specific range that the offer falls into."""
    main, sub = offer.split("/")
    for wanted in ((main, sub), (main, "*"), ("*", "*")):
        weights = [quality for left, right, quality in ranges if (left, right) == wanted]
        if weights:
            return max(weights)
    return 0.0
