"""Writes the pictures of this folder: what the encoders of the `image` crate cannot write. Needs Pillow 13.

Every picture is 32×16: the left half is one colour, the right half another, so that a decoder that swaps,
inverts or mirrors something cannot pass.
"""

import io

from PIL import Image

SIZE, HALF = (32, 16), (16, 16)


def halves(mode, left, right):
    picture = Image.new(mode, SIZE, left)
    picture.paste(Image.new(mode, HALF, right), (16, 0))
    return picture


def cmyk_jpeg(left, right):
    """A JPEG of four inks as Pillow writes them: inverted, with Adobe's marker, no colour transform."""
    out = io.BytesIO()
    halves("CMYK", left, right).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


ORANGE, TEAL = (230, 120, 20), (10, 130, 140)
# Inks of 0..255: (C, M, Y, K). Shown as 255·(1 − C/255)·(1 − K/255) and so on.
inks = cmyk_jpeg((0, 128, 204, 26), (204, 51, 51, 77))
open("cmyk-adobe.jpg", "wb").write(inks)
adobe = inks.index(b"\xff\xee")
length = int.from_bytes(inks[adobe + 2 : adobe + 4], "big") + 2
open("cmyk-bare.jpg", "wb").write(inks[:adobe] + inks[adobe + length :])

# YCCK: the stored samples are Y, Cb, Cr of the inverted picture and inverted black, and the marker's last byte says 2.
def ycck(c, m, y, k):
    luma, blue, red = Image.new("RGB", (1, 1), (c, m, y)).convert("YCbCr").getpixel((0, 0))
    return (255 - luma, 255 - blue, 255 - red, k)

stored = bytearray(cmyk_jpeg(ycck(0, 128, 204, 26), ycck(204, 51, 51, 77)))
transform = stored.index(b"Adobe") + 11
assert stored[transform] == 0
stored[transform] = 2
open("ycck-adobe.jpg", "wb").write(bytes(stored))

rgb = halves("RGB", ORANGE, TEAL)
rgb.save("progressive.jpg", quality=95, progressive=True)
rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save("palette.png", bits=2)
halves("1", 1, 0).save("bilevel.png")
glass = halves("RGBA", (*ORANGE, 255), (*TEAL, 51))
glass.quantize(4, method=Image.Quantize.FASTOCTREE).save("palette-alpha.png")
glass.save("lossy-alpha.webp", quality=100, method=6)
rgb.save("lossy.webp", quality=100)
rgb.save("animated.webp", lossless=True, save_all=True, append_images=[halves("RGB", TEAL, ORANGE)], duration=100)
rgb.save("animated.gif", save_all=True, append_images=[halves("RGB", TEAL, ORANGE)], duration=100)
rgb.save("animated.png", save_all=True, append_images=[halves("RGB", TEAL, ORANGE)], duration=100)
rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save("palette.bmp")
rgb.save("lzw.tif", compression="tiff_lzw", tiffinfo={274: 1})
rgb.save("jpeg.tif", compression="jpeg", quality=100)
halves("CMYK", (0, 128, 204, 26), (204, 51, 51, 77)).save("cmyk.tif")
halves("1", 1, 0).save("bilevel.tif", compression="group4")
