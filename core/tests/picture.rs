//! Decoding of pictures as a specification: every format and pixel kind, EXIF, limits, and broken files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use facewise_core::picture::{Format, Limits, PictureError, RgbImage, decode, open, probe};
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, Rgba, RgbaImage};
use proptest::prelude::*;

const ORANGE: [u8; 3] = [230, 120, 20];
const TEAL: [u8; 3] = [10, 130, 140];

/// A file of `tests/pictures`; `make.py` there writes them.
macro_rules! fixture {
    ($name:literal) => {
        ($name, include_bytes!(concat!("pictures/", $name)).as_slice())
    };
}

fn decoded(bytes: &[u8]) -> RgbImage {
    decode(bytes, Limits::default()).unwrap()
}

/// 32×16, left half orange and right half teal.
fn halves() -> RgbImage {
    RgbImage::from_fn(32, 16, |x, _| Rgb(if x < 16 { ORANGE } else { TEAL }))
}

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The same halves in each format, by the encoders of `image`.
fn each_format() -> [(Format, Vec<u8>); 6] {
    let picture = DynamicImage::from(halves());
    let mut gif = Vec::new();
    GifEncoder::new(&mut gif).encode(picture.as_bytes(), 32, 16, ExtendedColorType::Rgb8).unwrap();
    [
        (Format::Jpeg, encode(&picture, ImageFormat::Jpeg)),
        (Format::Png, encode(&picture, ImageFormat::Png)),
        (Format::WebP, encode(&picture, ImageFormat::WebP)),
        (Format::Bmp, encode(&picture, ImageFormat::Bmp)),
        (Format::Gif, gif),
        (Format::Tiff, encode(&picture, ImageFormat::Tiff)),
    ]
}

#[track_caller]
fn assert_halves(name: &str, picture: &RgbImage, left: [u8; 3], right: [u8; 3], tolerance: u8) {
    assert_eq!(picture.dimensions(), (32, 16), "{name}");
    for (x, expected) in [(3, left), (28, right)] {
        let found = picture.get_pixel(x, 8).0;
        let far = found.iter().zip(expected).any(|(&a, b)| a.abs_diff(b) > tolerance);
        assert!(!far, "{name}: at x = {x} {found:?} is not {expected:?}");
    }
}

#[test]
fn every_format_is_recognised_by_its_content() {
    for (format, bytes) in each_format() {
        let info = probe(&bytes, Limits::default()).unwrap();
        assert_eq!((info.format, info.width, info.height), (format, 32, 16));
        assert_halves(&format.to_string(), &decoded(&bytes), ORANGE, TEAL, if format == Format::Jpeg { 6 } else { 0 });
    }
}

/// 96 × 64 smooth pixels as a JPEG that says how it is to be turned.
fn smooth_jpeg(orientation: u8) -> Vec<u8> {
    let picture = RgbImage::from_fn(96, 64, |x, y| Rgb([2 * x as u8, 3 * y as u8, (x + y) as u8]));
    // A TIFF header and one directory entry.
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 98);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(&picture, 96, 64, ExtendedColorType::Rgb8).unwrap();
    bytes
}

#[test]
fn a_reduced_jpeg_has_the_means_of_the_pixels() {
    for (orientation, reduction) in [(1, 2), (6, 2), (5, 2), (3, 4), (8, 8)] {
        let bytes = smooth_jpeg(orientation);
        let picture = open(&bytes, Limits::default()).unwrap();
        let info = picture.info();
        let (whole, reduced) = (decoded(&bytes), picture.decode_reduced(reduction).unwrap());
        assert_eq!(reduced.dimensions(), (info.width / reduction, info.height / reduction));
        for (x, y, pixel) in reduced.enumerate_pixels() {
            let block = image::imageops::crop_imm(&whole, x * reduction, y * reduction, reduction, reduction);
            let mean = |channel: usize| {
                let sum: u32 = block.to_image().pixels().map(|pixel| u32::from(pixel.0[channel])).sum();
                sum as f32 / (reduction * reduction) as f32
            };
            let far = (0..3).any(|channel| (f32::from(pixel.0[channel]) - mean(channel)).abs() > 6.0);
            assert!(!far, "1/{reduction}, orientation {orientation}, at {x}, {y}: {pixel:?}");
        }
    }
}

#[test]
fn what_cannot_be_reduced_is_left_to_the_other_decoder() {
    let reduced = |bytes: &[u8], reduction| {
        open(bytes, Limits::default()).unwrap().decode_reduced(reduction).map(|picture| picture.dimensions())
    };
    let jpeg = smooth_jpeg(1);
    assert_eq!(reduced(&jpeg, 4), Some((24, 16)));
    assert_eq!(reduced(&jpeg[..jpeg.len() - 300], 2), None, "truncated");
    let odd = DynamicImage::from(RgbImage::new(31, 16));
    assert_eq!(reduced(&encode(&odd, ImageFormat::Jpeg), 2), None, "31 pixels wide");
    let gray = DynamicImage::from(halves()).to_luma8();
    assert_eq!(reduced(&encode(&gray.into(), ImageFormat::Jpeg), 2), Some((16, 8)));
    assert_eq!(reduced(&encode(&halves().into(), ImageFormat::Png), 2), None);
    let (_, progressive) = fixture!("progressive.jpg");
    assert_eq!(reduced(progressive, 2), None, "several scans");
    let scan = jpeg.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap();
    let end = jpeg.len() - 2;
    let twice = [&jpeg[..end], &jpeg[scan..]].concat();
    assert_eq!(reduced(&twice, 2), None, "the same scan once more");
    let (_, inks) = fixture!("cmyk-adobe.jpg");
    assert_eq!(reduced(inks, 2), None);
}

#[test]
fn pixel_kinds_that_other_programs_write() {
    // 255·(1 − ink/255)·(1 − black/255) of the inks in make.py.
    let inks = ([229, 114, 46], [36, 142, 142]);
    // Teal at alpha 51/255 over white.
    let faint_teal = [206, 230, 232];
    let cases = [
        (fixture!("cmyk-adobe.jpg"), inks.0, inks.1, 2),
        (fixture!("cmyk-bare.jpg"), inks.0, inks.1, 2),
        (fixture!("ycck-adobe.jpg"), inks.0, inks.1, 3),
        (fixture!("cmyk.tif"), inks.0, inks.1, 1),
        (fixture!("progressive.jpg"), ORANGE, TEAL, 3),
        (fixture!("palette.png"), ORANGE, TEAL, 0),
        (fixture!("palette.bmp"), ORANGE, TEAL, 0),
        (fixture!("bilevel.png"), [255; 3], [0; 3], 0),
        (fixture!("bilevel.tif"), [255; 3], [0; 3], 0),
        (fixture!("palette-alpha.png"), ORANGE, faint_teal, 0),
        (fixture!("lossy.webp"), ORANGE, TEAL, 3),
        (fixture!("lossy-alpha.webp"), ORANGE, faint_teal, 3),
        (fixture!("lzw.tif"), ORANGE, TEAL, 0),
        (fixture!("jpeg.tif"), ORANGE, TEAL, 3),
    ];
    for ((name, bytes), left, right, tolerance) in cases {
        assert_halves(name, &decoded(bytes), left, right, tolerance);
    }
}

#[test]
fn an_animation_is_its_first_frame() {
    for (name, bytes) in [fixture!("animated.gif"), fixture!("animated.webp"), fixture!("animated.png")] {
        assert_halves(name, &decoded(bytes), ORANGE, TEAL, 0);
    }
}

#[test]
fn gray_becomes_three_equal_channels_and_sixteen_bits_eight() {
    let gray = DynamicImage::from(halves()).to_luma8();
    let level = |x| [gray.get_pixel(x, 0).0[0]; 3];
    let deep = DynamicImage::from(DynamicImage::from(halves()).to_rgb16());
    let deep_gray = DynamicImage::from(DynamicImage::from(gray.clone()).to_luma16());
    let gray_alpha = DynamicImage::from(DynamicImage::from(gray.clone()).to_luma_alpha8());
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        assert_halves("16-bit RGB", &decoded(&encode(&deep, format)), ORANGE, TEAL, 0);
        assert_halves("16-bit gray", &decoded(&encode(&deep_gray, format)), level(0), level(31), 0);
    }
    assert_halves("gray and alpha", &decoded(&encode(&gray_alpha, ImageFormat::Png)), level(0), level(31), 0);
    let gray = DynamicImage::from(gray.clone());
    for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::Jpeg] {
        assert_halves("gray", &decoded(&encode(&gray, format)), level(0), level(31), 1);
    }
}

#[test]
fn transparent_pixels_lie_over_white() {
    let pixels = [
        (Rgba([0, 0, 0, 0]), [255, 255, 255]),
        (Rgba([200, 0, 50, 255]), [200, 0, 50]),
        (Rgba([0, 100, 255, 128]), [127, 177, 255]),
        (Rgba([0, 0, 0, 1]), [254, 254, 254]),
    ];
    let picture = RgbaImage::from_fn(4, 1, |x, _| pixels[x as usize].0);
    let deep = DynamicImage::from(DynamicImage::from(picture.clone()).to_rgba16());
    let picture = DynamicImage::from(picture);
    let files = [
        encode(&picture, ImageFormat::Png),
        encode(&picture, ImageFormat::WebP),
        encode(&picture, ImageFormat::Tiff),
        encode(&picture, ImageFormat::Bmp),
        encode(&deep, ImageFormat::Png),
    ];
    for bytes in files {
        let flat = decoded(&bytes);
        for (x, (_, expected)) in pixels.iter().enumerate() {
            assert_eq!(flat.get_pixel(x as u32, 0).0, *expected);
        }
    }
}

/// EXIF with nothing but an orientation: a TIFF header and one directory entry.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

fn write_with_exif(mut encoder: impl ImageEncoder, picture: &RgbImage, exif: Vec<u8>) {
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8).unwrap();
}

/// A TIFF whose directory gained an orientation, as cameras and scanners write it.
fn turn_tiff(mut bytes: Vec<u8>, orientation: u8) -> Vec<u8> {
    let directory = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let entries = usize::from(bytes[directory]);
    let mut copy = vec![bytes[directory] + 1, 0];
    let old: Vec<_> = bytes[directory + 2..directory + 2 + 12 * entries].chunks(12).map(<[u8]>::to_vec).collect();
    let added = [&[0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0][..]];
    let mut all: Vec<&[u8]> = old.iter().map(Vec::as_slice).chain(added).collect();
    all.sort_by_key(|entry| u16::from_le_bytes([entry[0], entry[1]]));
    copy.extend(all.concat());
    copy.extend([0; 4]);
    let at = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&at.to_le_bytes());
    bytes.extend(copy);
    bytes
}

#[test]
fn exif_orientation_is_applied() {
    const R: [u8; 3] = [255, 0, 0];
    const G: [u8; 3] = [0, 255, 0];
    const B: [u8; 3] = [0, 0, 255];
    const W: [u8; 3] = [255, 255, 255];
    // Stored: red, green above blue, white. EXIF 2.32, tag 0x0112: where row 0 and column 0 belong on the screen.
    let shown = [
        [R, G, B, W],
        [G, R, W, B],
        [W, B, G, R],
        [B, W, R, G],
        [R, B, G, W],
        [B, R, W, G],
        [W, G, B, R],
        [G, W, R, B],
    ];
    let stored = RgbImage::from_fn(32, 16, |x, y| Rgb([[R, G], [B, W]][usize::from(y >= 8)][usize::from(x >= 16)]));
    for (index, corners) in shown.iter().enumerate() {
        let orientation = index as u8 + 1;
        let (mut jpeg, mut png, mut webp) = (Vec::new(), Vec::new(), Vec::new());
        write_with_exif(JpegEncoder::new_with_quality(&mut jpeg, 95), &stored, exif(orientation));
        write_with_exif(PngEncoder::new(&mut png), &stored, exif(orientation));
        write_with_exif(WebPEncoder::new_lossless(&mut webp), &stored, exif(orientation));
        let tiff = turn_tiff(encode(&DynamicImage::from(stored.clone()), ImageFormat::Tiff), orientation);

        for (name, bytes) in [("JPEG", jpeg), ("PNG", png), ("WebP", webp), ("TIFF", tiff)] {
            let picture = decoded(&bytes);
            let (width, height) = if orientation < 5 { (32, 16) } else { (16, 32) };
            assert_eq!(picture.dimensions(), (width, height), "{name}, orientation {orientation}");
            let info = probe(&bytes, Limits::default()).unwrap();
            assert_eq!((info.width, info.height), (width, height), "{name}, orientation {orientation}");
            let (right, bottom) = (width - 3, height - 3);
            for ((x, y), expected) in [(2, 2), (right, 2), (2, bottom), (right, bottom)].into_iter().zip(corners) {
                let found = picture.get_pixel(x, y).0;
                let far = found.iter().zip(expected).any(|(a, &b)| a.abs_diff(b) > 24);
                assert!(!far, "{name}, orientation {orientation}: {found:?} at {x}, {y} is not {expected:?}");
            }
        }
    }
}

#[test]
fn an_orientation_that_does_not_exist_changes_nothing() {
    let mut bytes = Vec::new();
    write_with_exif(PngEncoder::new(&mut bytes), &halves(), exif(9));
    assert_halves("orientation 9", &decoded(&bytes), ORANGE, TEAL, 0);
}

/// CRC-32 of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

/// The same file with a header that says 30,000×30,000 (WebP: 16,000×16,000, near the most it can say).
fn inflate_header(format: Format, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let side = 30_000u16;
    match format {
        Format::Jpeg => {
            let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
            bytes[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
            bytes[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
        }
        Format::Png => {
            bytes[16..20].copy_from_slice(&u32::from(side).to_be_bytes());
            bytes[20..24].copy_from_slice(&u32::from(side).to_be_bytes());
            let check = crc(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&check.to_be_bytes());
        }
        Format::WebP => {
            assert_eq!(&bytes[12..16], b"VP8L");
            let flags = u32::from_le_bytes(bytes[21..25].try_into().unwrap()) & 0xF000_0000;
            bytes[21..25].copy_from_slice(&(flags + 15_999 + (15_999 << 14)).to_le_bytes());
        }
        Format::Bmp => {
            bytes[18..22].copy_from_slice(&u32::from(side).to_le_bytes());
            bytes[22..26].copy_from_slice(&u32::from(side).to_le_bytes());
        }
        Format::Gif => {
            bytes[6..8].copy_from_slice(&side.to_le_bytes());
            bytes[8..10].copy_from_slice(&side.to_le_bytes());
        }
        Format::Tiff => {
            let directory = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            for entry in bytes[directory + 2..].chunks_mut(12).take(8) {
                // Width, height, and as many rows in the one strip.
                if matches!(entry[..2], [0 | 1 | 0x16, 1]) {
                    entry[2..].copy_from_slice(&[3, 0, 1, 0, 0, 0, side as u8, (side >> 8) as u8, 0, 0]);
                }
            }
        }
    }
    bytes
}

#[test]
fn more_pixels_than_allowed_are_refused_by_the_header() {
    for (format, bytes) in each_format() {
        let huge = inflate_header(format, &bytes);
        let side = if format == Format::WebP { 16_000 } else { 30_000 };
        let expected = PictureError::TooManyPixels { width: side, height: side, limit: 50_000_000 };
        assert_eq!(decode(&huge, Limits::default()), Err(expected.clone()), "{format}");
        assert_eq!(probe(&huge, Limits::default()), Err(expected), "{format}");
    }
}

#[test]
fn the_limit_is_the_largest_size_allowed() {
    for (format, bytes) in each_format() {
        assert!(decode(&bytes, Limits { max_pixels: 512 }).is_ok(), "{format}");
        let refused = decode(&bytes, Limits { max_pixels: 511 }).unwrap_err();
        assert_eq!(refused, PictureError::TooManyPixels { width: 32, height: 16, limit: 511 }, "{format}");
    }
}

#[test]
fn large_pictures_within_the_limit_are_read() {
    let picture = DynamicImage::from(RgbImage::from_pixel(5000, 4000, Rgb(TEAL)));
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
        let large = decoded(&encode(&picture, format));
        assert_eq!(large.dimensions(), (5000, 4000), "{format:?}");
    }
}

#[test]
fn bytes_that_are_no_picture() {
    let limits = Limits::default();
    assert_eq!(decode(b"", limits), Err(PictureError::Empty));
    assert_eq!(probe(b"", limits), Err(PictureError::Empty));
    for bytes in [b"hello, this is text".as_slice(), b"%PDF-1.7", b"\0\0\0\x18ftypheic", b"\xFF", b"PK\x03\x04"] {
        assert_eq!(decode(bytes, limits), Err(PictureError::UnknownFormat));
        assert_eq!(probe(bytes, limits), Err(PictureError::UnknownFormat));
    }
    assert!(matches!(decode(b"BMW", limits), Err(PictureError::Broken { format: Format::Bmp, .. })));
}

#[test]
fn a_truncated_file_is_an_error_in_every_format() {
    for (format, bytes) in each_format() {
        for share in [0.3, 0.6, 0.9] {
            let cut = &bytes[..(bytes.len() as f64 * share) as usize];
            let error = decode(cut, Limits::default()).expect_err(&format!("{format} cut to {share}"));
            assert!(matches!(error, PictureError::Broken { .. }), "{format} cut to {share}: {error}");
        }
    }
}

#[test]
fn a_jpeg_cut_anywhere_is_an_error() {
    let noise = RgbImage::from_fn(64, 48, |x, y| Rgb([(x * y * 7 % 251) as u8, (x * 13 + y) as u8, (y * 29) as u8]));
    let baseline = encode(&DynamicImage::from(noise), ImageFormat::Jpeg);
    let progressive = fixture!("progressive.jpg").1.to_vec();
    for bytes in [baseline, progressive] {
        assert!(decode(&bytes, Limits::default()).is_ok());
        for length in 4..bytes.len() {
            let result = decode(&bytes[..length], Limits::default());
            assert!(matches!(result, Err(PictureError::Broken { .. })), "cut to {length} of {}", bytes.len());
        }
    }
}

#[test]
fn a_thumbnail_inside_does_not_hide_that_a_jpeg_is_cut() {
    let thumbnail = encode(&DynamicImage::from(halves()), ImageFormat::Jpeg);
    let mut bytes = Vec::new();
    write_with_exif(JpegEncoder::new(&mut bytes), &halves(), [exif(1), thumbnail].concat());
    assert!(decode(&bytes, Limits::default()).is_ok());
    let cut = &bytes[..bytes.len() - 2];
    assert!(matches!(decode(cut, Limits::default()), Err(PictureError::Broken { .. })));
}

#[test]
fn bytes_behind_the_end_are_ignored() {
    for (format, mut bytes) in each_format() {
        let clean = decoded(&bytes);
        bytes.extend(b"\xFF\xD8 and whatever a camera appended \xFF\0\0");
        assert_eq!(decoded(&bytes), clean, "{format}");
    }
}

#[test]
fn errors_read_as_sentences() {
    let too_many = PictureError::TooManyPixels { width: 30_000, height: 30_000, limit: 50_000_000 };
    assert_eq!(too_many.to_string(), "the picture has 30000 × 30000 pixels, more than the 50000000 allowed");
    let (_, png) = each_format()[1].clone();
    let broken = decode(&png[..png.len() / 2], Limits::default()).unwrap_err();
    assert_eq!(broken.to_string(), "broken PNG picture: unexpected end of file");
}

/// Every valid file there is in these tests.
static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = [
        fixture!("cmyk-adobe.jpg"),
        fixture!("ycck-adobe.jpg"),
        fixture!("progressive.jpg"),
        fixture!("palette-alpha.png"),
        fixture!("animated.png"),
        fixture!("lossy-alpha.webp"),
        fixture!("animated.webp"),
        fixture!("animated.gif"),
        fixture!("palette.bmp"),
        fixture!("lzw.tif"),
        fixture!("jpeg.tif"),
        fixture!("bilevel.tif"),
    ];
    let encoded = each_format().into_iter().map(|(_, bytes)| bytes);
    encoded.chain(files.into_iter().map(|(_, bytes)| bytes.to_vec())).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever happens to a file on its way, the answer is a picture of the announced size or an error.
    #[test]
    fn mutations_and_truncations_never_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        kept in prop_oneof![3 => Just(1.0), 1 => 0.0..1.0f64],
    ) {
        let mut bytes = which.get(&CORPUS).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate((bytes.len() as f64 * kept) as usize);
        let limits = Limits { max_pixels: 1_000_000 };
        match (probe(&bytes, limits), decode(&bytes, limits)) {
            (Ok(info), Ok(picture)) => prop_assert_eq!((info.width, info.height), picture.dimensions()),
            (Err(probed), Ok(_)) => prop_assert!(false, "the header was refused, the picture was not: {}", probed),
            (_, Err(_)) => {}
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = probe(&bytes, Limits::default());
        prop_assert!(decode(&bytes, Limits::default()).is_err());
    }
}
