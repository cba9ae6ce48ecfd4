"""The colours of identities and classes, on frames and in palette images."""

from __future__ import annotations

Colour = tuple[int, int, int]

# Chosen one by one among the sRGB colours of CIELAB lightness 48 to 90 and chroma 30 or more, each as far as possible
# from those before it.  So the first n colours are about as distinct as n colours can be.
_PALETTE = bytes.fromhex("""
    ff5a32 00ff00 b400ff 00d7ff 697d19 ff9be1 32ffb4 0078ff ffe100 ffc3a0 ff0078 00826e 5a73a5 ff0acd
    a5eb55 cd8705 b9555f c3ebaf a550c8 00a03c 966937 f5dc73 c8c3ff 50e1cd c83791 7355ff 37ff73 00a0ff
    a06491 aa96ff aab405 eb825a dc2d46 058ca5 faa0af a0a069 e155ff 05b900 5fb478 96fa00 ff73eb d2f000
    ff6e9b a0c35f ff7d00 5fa000 b95500 9bf596 af9632 69b4eb ff0000 506ec8 ffb900 fab464 557d4b ff1ea5
    c88773 ff00ff b973c8 ff0037 e6d79b ffc3f0 8c73fa ff7373 c82db4 5ad75f 1eafaf dceb5f 8cf0fa 9b87c8
    3c822d c8462d 8cf5be d787ff 19c87d d7b428 fa9141 d23264 dcaafa 9b6905 c89b64 b9507d 55f037 8ccdaa
    91aaff ff6ebe b45a41 008750 00af91 a53cf0 825fc3 7d732d d791b9 00fad2 73d205 0087c8 ff9b8c a0cd00
    00f5ff 69be5f
""")


def colour(number: int) -> Colour:
    """The (red, green, blue) of an id or a class index, in [0, 255]; 100 numbers have distinct colours."""
    red, green, blue = _PALETTE[3 * number % len(_PALETTE) :][:3]
    return red, green, blue


def ink(tint: Colour) -> Colour:
    """Black or white: the colour of text on `tint` with the higher contrast ratio (WCAG 2), at least 4.5."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in tint)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)
