//! From the bytes of a picture file to RGB pixels as people see them: any of six formats, EXIF orientation
//! applied, and a limit on the number of pixels that is checked before any memory is taken for them.
//!
//! Colours are taken as sRGB; an embedded colour profile is ignored. The content of a file decides about its
//! format, never a name or a content type.

use std::error::Error as _;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Rgb};

use jpeg_decoder::PixelFormat;
use memchr::memchr;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::geometry::{Landmarks, Point};

pub use image::RgbImage;

/// What a picture may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width × height) that a picture may have.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 50_000_000 }
    }
}

/// A format that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// JPEG, baseline and progressive; gray, YCbCr, RGB, CMYK and YCCK.
    Jpeg,
    /// PNG; of an animation, its default image.
    Png,
    /// WebP, lossy and lossless; of an animation, the first frame.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// GIF; of an animation, the first frame.
    Gif,
    /// TIFF; of several pages, the first.
    Tiff,
}

impl Format {
    /// The format that the first bytes of a file announce.
    fn of(bytes: &[u8]) -> Option<Self> {
        match image::guess_format(bytes).ok()? {
            ImageFormat::Jpeg => Some(Self::Jpeg),
            ImageFormat::Png => Some(Self::Png),
            ImageFormat::WebP => Some(Self::WebP),
            ImageFormat::Bmp => Some(Self::Bmp),
            ImageFormat::Gif => Some(Self::Gif),
            ImageFormat::Tiff => Some(Self::Tiff),
            _ => None,
        }
    }

    const fn decoder(self) -> ImageFormat {
        match self {
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Png => ImageFormat::Png,
            Self::WebP => ImageFormat::WebP,
            Self::Bmp => ImageFormat::Bmp,
            Self::Gif => ImageFormat::Gif,
            Self::Tiff => ImageFormat::Tiff,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Tiff => "TIFF",
        })
    }
}

/// What the header of a picture says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The format of the file.
    pub format: Format,
    /// Width in pixels as displayed (EXIF orientation applied).
    pub width: u32,
    /// Height in pixels as displayed (EXIF orientation applied).
    pub height: u32,
    /// How the stored pixels are turned to be displayed.
    pub orientation: Orientation,
}

impl Info {
    /// Where a face of the stored pixels lies in the picture as displayed.
    ///
    /// In a picture that is mirrored to be displayed, the eye that looked like the right one looks like the left one.
    #[must_use]
    pub fn displayed(&self, stored: &Landmarks) -> Landmarks {
        let Landmarks { right_eye, left_eye, nose, mouth } = *stored;
        let [right_eye, left_eye, nose, mouth] = [right_eye, left_eye, nose, mouth].map(|point| self.turned(point));
        let (right_eye, left_eye) =
            if mirrors(self.orientation) { (left_eye, right_eye) } else { (right_eye, left_eye) };
        Landmarks { right_eye, left_eye, nose, mouth }
    }

    /// A point of the stored pixels, as displayed.
    fn turned(&self, Point { x, y }: Point) -> Point {
        // Distances to the far edges of the picture as displayed.
        let (width, height) = (self.width as f32, self.height as f32);
        match self.orientation {
            Orientation::NoTransforms => Point::new(x, y),
            Orientation::FlipHorizontal => Point::new(width - x, y),
            Orientation::Rotate180 => Point::new(width - x, height - y),
            Orientation::FlipVertical => Point::new(x, height - y),
            Orientation::Rotate90FlipH => Point::new(y, x),
            Orientation::Rotate90 => Point::new(width - y, x),
            Orientation::Rotate270FlipH => Point::new(width - y, height - x),
            Orientation::Rotate270 => Point::new(y, height - x),
        }
    }
}

/// Why bytes are not a usable picture. The texts are fit for whoever sent them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// No bytes at all.
    #[error("the picture is empty")]
    Empty,
    /// The first bytes belong to no format that is read here.
    #[error("not a picture in a known format (JPEG, PNG, WebP, BMP, GIF, TIFF)")]
    UnknownFormat,
    /// A valid picture perhaps, with a feature that is not read here.
    #[error("{format} picture of an unsupported kind: {reason}")]
    Unsupported {
        /// The format of the file.
        format: Format,
        /// The feature.
        reason: String,
    },
    /// More pixels than [`Limits::max_pixels`].
    #[error("the picture has {width} × {height} pixels, more than the {limit} allowed")]
    TooManyPixels {
        /// Width in pixels, as stored.
        width: u32,
        /// Height in pixels, as stored.
        height: u32,
        /// The limit on width × height.
        limit: u64,
    },
    /// Truncated or corrupt.
    #[error("broken {format} picture: {reason}")]
    Broken {
        /// The format of the file.
        format: Format,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the header only: format and displayed size.
///
/// # Errors
/// Every [`PictureError`]; a file whose header is good may still turn out broken in [`decode`].
pub fn probe(bytes: &[u8], limits: Limits) -> Result<Info, PictureError> {
    open(bytes, limits).map(|picture| picture.info)
}

/// Decodes a picture to RGB, 8 bits a channel, as displayed: EXIF orientation 1–8 is applied.
///
/// Transparent pixels are laid over white, which is what a browser shows of them on a blank page. 16 bits are
/// rounded to 8, gray becomes three equal channels. CMYK and YCCK JPEGs are read by Adobe's convention (inverted
/// inks), as browsers and Pillow do. A JPEG must be complete up to its end marker; bytes behind it are ignored.
///
/// # Errors
/// Every [`PictureError`].
pub fn decode(bytes: &[u8], limits: Limits) -> Result<RgbImage, PictureError> {
    open(bytes, limits)?.decode()
}

/// Reads the header and checks the size it announces; pixels have taken no memory yet.
///
/// # Errors
/// Every [`PictureError`].
pub fn open(bytes: &[u8], limits: Limits) -> Result<Opened<'_>, PictureError> {
    let format = recognise(bytes)?;
    shielded(format, || {
        let (decoder, orientation) = match format {
            Format::Jpeg => open_jpeg(bytes, limits)?,
            _ => open_other(bytes, format, limits)?,
        };
        let (width, height) = decoder.dimensions();
        let (width, height) = if turns_on_its_side(orientation) { (height, width) } else { (width, height) };
        Ok(Opened { bytes, info: Info { format, width, height, orientation }, decoder })
    })
}

/// A picture whose header has been read.
pub struct Opened<'a> {
    bytes: &'a [u8],
    info: Info,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    /// Asked directly: `image` reads the header of a JPEG once for its size, once for its orientation and once for its pixels.
    Jpeg(Box<JpegDecoder<ZCursor<&'a [u8]>>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

impl Decoder<'_> {
    /// Width and height in pixels, as stored.
    fn dimensions(&self) -> (u32, u32) {
        match self {
            Self::Jpeg(decoder) => jpeg_dimensions(decoder),
            Self::Other(decoder) => decoder.dimensions(),
        }
    }
}

impl Opened<'_> {
    /// What its header says.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// Its pixels, as [`decode`] reads them.
    ///
    /// # Errors
    /// When it turns out broken, or of an unsupported kind.
    pub fn decode(self) -> Result<RgbImage, PictureError> {
        let Self { bytes, info: Info { format, orientation, .. }, decoder } = self;
        shielded(format, || {
            let mut picture = match decoder {
                Decoder::Jpeg(decoder) => decode_jpeg(bytes, *decoder)?,
                Decoder::Other(decoder) => {
                    DynamicImage::from_decoder(decoder).map_err(|error| refuse(format, &error))?
                }
            };
            picture.apply_orientation(orientation);
            Ok(flatten(picture))
        })
    }

    /// Its pixels at half, a quarter or an eighth of its size, where that is cheap: a JPEG's blocks of 8 × 8 pixels can be decoded as
    /// blocks of 4 × 4, 2 × 2 or one. Each pixel is then the mean of `reduction` × `reduction` pixels.
    ///
    /// `None` where it is not: of another format, with sides that are no multiples of `reduction`, or in a way of JPEG that needs
    /// [`Self::decode`], which also says what is wrong with one that is broken. Among these are those of several scans, which are hardly
    /// quicker at a fraction of their size, and of which `jpeg-decoder` reads as many as somebody has written.
    pub fn decode_reduced(&self, reduction: u32) -> Option<RgbImage> {
        let Self { bytes, ref info, ref decoder } = *self;
        let Decoder::Jpeg(decoder) = decoder else { return None };
        let multiple = info.width.is_multiple_of(reduction) && info.height.is_multiple_of(reduction);
        let usual = matches!(decoder.input_colorspace(), Some(ColorSpace::YCbCr | ColorSpace::Luma));
        if !multiple || !usual || jpeg_scans(bytes) != Some(1) {
            return None;
        }
        let read = || {
            let (width, height) = (info.width / reduction, info.height / reduction);
            let (width, height) = if turns_on_its_side(info.orientation) { (height, width) } else { (width, height) };
            let mut decoder = jpeg_decoder::Decoder::new(bytes);
            let asked = (u16::try_from(width).ok()?, u16::try_from(height).ok()?);
            if decoder.scale(asked.0, asked.1).ok()? != asked {
                return None;
            }
            let pixels = decoder.decode().ok()?;
            let mut picture = match decoder.info()?.pixel_format {
                PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
                PixelFormat::L8 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
                PixelFormat::L16 | PixelFormat::CMYK32 => None,
            }?;
            picture.apply_orientation(info.orientation);
            Some(picture.into_rgb8())
        };
        catch_unwind(AssertUnwindSafe(read)).unwrap_or(None)
    }
}

fn recognise(bytes: &[u8]) -> Result<Format, PictureError> {
    if bytes.is_empty() {
        return Err(PictureError::Empty);
    }
    Format::of(bytes).ok_or(PictureError::UnknownFormat)
}

/// Refuses a picture that has no pixels, or too many.
fn check(format: Format, (width, height): (u32, u32), limits: Limits) -> Result<(), PictureError> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(PictureError::Broken { format, reason: "it has no pixels".into() });
    }
    if pixels > limits.max_pixels {
        return Err(PictureError::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    Ok(())
}

/// A JPEG is believed as far as it goes: who wrote it has broken more rules than keep its pixels from being read.
fn open_jpeg(bytes: &[u8], limits: Limits) -> Result<(Decoder<'_>, Orientation), PictureError> {
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| refuse_jpeg(&error))?;
    // Unreadable metadata is no reason to refuse readable pixels.
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    check(Format::Jpeg, jpeg_dimensions(&decoder), limits)?;
    Ok((Decoder::Jpeg(Box::new(decoder)), orientation))
}

/// Width and height in pixels, once the header has been read.
fn jpeg_dimensions(decoder: &JpegDecoder<ZCursor<&[u8]>>) -> (u32, u32) {
    decoder.dimensions().map_or((0, 0), |(width, height)| (width as u32, height as u32))
}

fn decode_jpeg(bytes: &[u8], mut decoder: JpegDecoder<ZCursor<&[u8]>>) -> Result<DynamicImage, PictureError> {
    // The decoder paints missing data gray and calls it success.
    if jpeg_scans(bytes).is_none() {
        return Err(PictureError::Broken {
            format: Format::Jpeg,
            reason: "the data ends before the end marker".into(),
        });
    }
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if gray { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(|error| refuse_jpeg(&error))?;
    let (width, height) = jpeg_dimensions(&decoder);
    let picture = if gray {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    picture.ok_or_else(|| PictureError::Broken { format: Format::Jpeg, reason: "its pixels are too few".into() })
}

fn refuse_jpeg(error: &DecodeErrors) -> PictureError {
    let format = Format::Jpeg;
    match error {
        DecodeErrors::Unsupported(scheme) => PictureError::Unsupported { format, reason: format!("{scheme:?}") },
        _ => PictureError::Broken { format, reason: error.to_string() },
    }
}

fn open_other(bytes: &[u8], format: Format, limits: Limits) -> Result<(Decoder<'_>, Orientation), PictureError> {
    /// Room for everything that is not pixels: profiles, comments, tables, one strip or row.
    const OVERHEAD_BYTES: u64 = 16 << 20;

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.decoder());
    reader.limits(allocation(OVERHEAD_BYTES));
    let mut decoder = reader.into_decoder().map_err(|error| refuse(format, &error))?;
    check(format, decoder.dimensions(), limits)?;
    // Twice the pixels, since some decoders assemble the picture from a copy of all of it.
    let allowed = decoder.total_bytes().saturating_mul(2).saturating_add(OVERHEAD_BYTES);
    decoder.set_limits(allocation(allowed)).map_err(|error| refuse(format, &error))?;

    // Unreadable metadata is no reason to refuse readable pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((Decoder::Other(Box::new(decoder)), orientation))
}

fn allocation(bytes: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(bytes);
    limits
}

/// Runs a decoder on bytes from anywhere. Decoders are other people's code; one that panics has met a file that
/// its authors did not think of, which is that file's fault to whoever sent it and no reason to stop a server.
fn shielded<T>(format: Format, read: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(PictureError::Broken { format, reason: "its structure contradicts itself".into() }))
}

fn refuse(format: Format, error: &ImageError) -> PictureError {
    // The outer text repeats the format's name; the cause alone says what is wrong.
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match error {
        ImageError::Unsupported(_) => PictureError::Unsupported { format, reason },
        _ => PictureError::Broken { format, reason },
    }
}

const fn turns_on_its_side(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    )
}

const fn mirrors(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::FlipHorizontal
            | Orientation::FlipVertical
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// RGB without alpha: transparent pixels over white.
fn flatten(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let source = picture.into_rgba8();
    let mut flat = RgbImage::new(source.width(), source.height());
    for (out, pixel) in flat.pixels_mut().zip(source.pixels()) {
        let [r, g, b, alpha] = pixel.0;
        *out = Rgb([r, g, b].map(|channel| over_white(channel, alpha)));
    }
    flat
}

/// `channel·α + 255·(1 − α)`, rounded (Porter and Duff 1984, "over", on an opaque white ground).
fn over_white(channel: u8, alpha: u8) -> u8 {
    let (channel, alpha) = (u32::from(channel), u32::from(alpha));
    ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// The scans of a JPEG that goes on to its end-of-image marker, counted by walking its segments (ITU-T T.81, annex B); `None` of one that
/// does not.
///
/// A thumbnail inside the metadata has markers of its own, which is why segments are skipped whole.
fn jpeg_scans(bytes: &[u8]) -> Option<usize> {
    const STUFFED: u8 = 0x00;
    const TEMPORARY: u8 = 0x01;
    const FILL: u8 = 0xFF;
    const END_OF_IMAGE: u8 = 0xD9;
    const START_OF_SCAN: u8 = 0xDA;

    let (mut at, mut scans) = (0, 0);
    while let Some(offset) = bytes.get(at..).and_then(|rest| memchr(0xFF, rest)) {
        let marker = at + offset + 1;
        at = match bytes.get(marker) {
            None => return None,
            Some(&END_OF_IMAGE) => return Some(scans),
            Some(&FILL) => marker,
            // 0xD0–0xD7 are restarts inside the entropy-coded data, 0xD8 starts the image: no length follows.
            Some(&(STUFFED | TEMPORARY | 0xD0..=0xD8)) => marker + 1,
            Some(kind) => {
                scans += usize::from(*kind == START_OF_SCAN);
                let &[high, low] = bytes.get(marker + 1..marker + 3)? else { return None };
                marker + 1 + usize::from(u16::from_be_bytes([high, low]))
            }
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_the_stored_picture_go_where_its_pixels_go() {
        let stored = RgbImage::from_fn(7, 4, |x, y| Rgb([x as u8, y as u8, 0]));
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("1 to 8 are known");
            let mut picture = DynamicImage::from(stored.clone());
            picture.apply_orientation(orientation);
            let shown = picture.into_rgb8();
            let (width, height) = shown.dimensions();
            let info = Info { format: Format::Jpeg, width, height, orientation };
            for (x, y, Rgb([from_x, from_y, _])) in shown.enumerate_pixels() {
                let centre = Point::new(f32::from(*from_x) + 0.5, f32::from(*from_y) + 0.5);
                assert_eq!(info.turned(centre), Point::new(x as f32 + 0.5, y as f32 + 0.5), "orientation {exif}");
            }
        }
    }

    #[test]
    fn a_mirrored_face_changes_its_eyes() {
        let stored = Landmarks {
            right_eye: Point::new(30.0, 40.0),
            left_eye: Point::new(70.0, 40.0),
            nose: Point::new(50.0, 60.0),
            mouth: Point::new(50.0, 80.0),
        };
        let shown =
            |orientation, width, height| Info { format: Format::Jpeg, width, height, orientation }.displayed(&stored);
        let mirrored = shown(Orientation::FlipHorizontal, 100, 200);
        assert_eq!(mirrored, stored, "a symmetric face in the middle");
        let turned = shown(Orientation::Rotate90, 200, 100);
        assert_eq!(turned.right_eye, Point::new(160.0, 30.0), "the right eye is above the left one");
        assert_eq!(turned.left_eye, Point::new(160.0, 70.0));
        assert_eq!(turned.mouth, Point::new(120.0, 50.0));
    }
}
