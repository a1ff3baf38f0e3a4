//! Mean faces: each is the average of hundreds of aligned crops, so that it shows a face and yet no person. Writes them
//! as `faces/<name>.jpg`, and some of them together as `group.jpg`, for documentation, tests and the console.
//!
//! `cargo run --release -p facewise-evaluation --example mean_faces -- --data DATA --out examples`

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use facewise_core::crop::crop;
use facewise_core::geometry::{Landmarks, Point, Similarity, Template};
use facewise_core::picture::{Limits, decode};
use facewise_evaluation::{Dataset, Filter, Row};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, Rgba, Rgba32FImage, RgbaImage};

/// Side of a mean face in pixels.
const SIDE: u32 = 256;

/// A mean of fewer people might resemble one of them.
const FEWEST: usize = 200;

/// The best aligned half of the pictures enters a mean, no more than these: the others only blur it.
const MOST: usize = 1000;

/// Like [`Template::FACE`], with room for hair and neck.
const HEAD: Template =
    Template { right_eye: Point::new(0.39, 0.44), left_eye: Point::new(0.61, 0.44), mouth: Point::new(0.50, 0.66) };

/// Like [`Template::FACE`], with room for chin and a soft edge.
const BROWS_TO_CHIN: Template =
    Template { right_eye: Point::new(0.355, 0.41), left_eye: Point::new(0.645, 0.41), mouth: Point::new(0.50, 0.70) };

/// A soft-edged ellipse that is cut out of a mean, in shares of its side.
struct Oval {
    centre_y: f32,
    radius_x: f32,
    radius_y: f32,
}

/// A set of pictures, and how far around the face its pictures reach.
struct Source {
    set: &'static str,
    split: &'static str,
    template: Template,
    oval: Oval,
}

const CELEBA: Source = Source {
    set: "celeba_faces",
    split: "split=train",
    template: HEAD,
    oval: Oval { centre_y: 0.49, radius_x: 0.38, radius_y: 0.47 },
};

const UTKFACE: Source = Source {
    set: "utkface",
    split: "split=train",
    template: BROWS_TO_CHIN,
    oval: Oval { centre_y: 0.53, radius_x: 0.41, radius_y: 0.475 },
};

const FER2013: Source = Source { set: "fer2013", split: "usage=Training,copy_in_other_split=0", ..UTKFACE };

/// Which people make up a mean face.
struct Recipe {
    name: &'static str,
    source: &'static Source,
    filter: &'static str,
    /// From and up to these years, where the set knows them.
    years: Option<(f32, f32)>,
}

const fn celeba(name: &'static str, filter: &'static str) -> Recipe {
    Recipe { name, source: &CELEBA, filter, years: None }
}

const fn utkface(name: &'static str, filter: &'static str, from: f32, to: f32) -> Recipe {
    Recipe { name, source: &UTKFACE, filter, years: Some((from, to)) }
}

const fn fer2013(name: &'static str, filter: &'static str) -> Recipe {
    Recipe { name, source: &FER2013, filter, years: None }
}

const RECIPES: [Recipe; 22] = [
    celeba("woman-smiling", "Male=0,Young=1,Smiling=1"),
    celeba("woman-neutral", "Male=0,Young=1,Smiling=0"),
    celeba("man-smiling", "Male=1,Young=1,Smiling=1"),
    celeba("man-neutral", "Male=1,Young=1,Smiling=0"),
    celeba("older-woman-smiling", "Male=0,Young=0,Smiling=1"),
    celeba("older-man-smiling", "Male=1,Young=0,Smiling=1"),
    celeba("older-man-neutral", "Male=1,Young=0,Smiling=0"),
    celeba("gray-man", "Male=1,Gray_Hair=1"),
    utkface("baby", "", 0.0, 2.0),
    utkface("girl", "gender=female", 3.0, 12.0),
    utkface("boy", "gender=male", 3.0, 12.0),
    utkface("young-woman", "gender=female", 20.0, 29.0),
    utkface("young-man", "gender=male", 20.0, 29.0),
    utkface("old-woman", "gender=female", 65.0, 116.0),
    utkface("old-man", "gender=male", 65.0, 116.0),
    fer2013("angry", "emotion=angry"),
    fer2013("disgust", "emotion=disgust"),
    fer2013("fear", "emotion=fear"),
    fer2013("happy", "emotion=happy"),
    fer2013("sad", "emotion=sad"),
    fer2013("surprise", "emotion=surprise"),
    fer2013("neutral", "emotion=neutral"),
];

/// Who stands where in the group picture, from the back to the front: centre and side in its pixels.
const GROUP: [(&str, i64, i64, u32); 9] = [
    ("man-neutral", 114, 192, 265),
    ("woman-smiling", 309, 158, 255),
    ("older-man-smiling", 512, 182, 290),
    ("woman-neutral", 715, 154, 250),
    ("man-smiling", 910, 196, 275),
    ("old-woman", 214, 464, 240),
    ("girl", 424, 484, 185),
    ("boy", 606, 502, 150),
    ("old-man", 808, 460, 255),
];

/// Colours behind the faces.
const LIGHT: Rgba<u8> = Rgba([234, 230, 224, 255]);
const SHADE: Rgba<u8> = Rgba([188, 192, 198, 255]);

#[derive(clap::Parser)]
struct Args {
    /// The folder of the sets
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Where the pictures are written
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let faces = args.out.join("faces");
    fs::create_dir_all(&faces)?;
    let mut portraits = BTreeMap::new();
    for source in [&CELEBA, &UTKFACE, &FER2013] {
        let dataset = Dataset::open(args.data.join(source.set))?;
        for recipe in RECIPES.iter().filter(|recipe| recipe.source.set == source.set) {
            let portrait = portrait(&dataset, recipe).with_context(|| recipe.name)?;
            let mut picture = RgbaImage::from_pixel(SIDE, SIDE, LIGHT);
            imageops::overlay(&mut picture, &portrait, 0, 0);
            write(&faces.join(recipe.name).with_extension("jpg"), picture)?;
            portraits.insert(recipe.name, portrait);
        }
    }
    write(&args.out.join("group.jpg"), group(&portraits))
}

/// The mean faces of [`GROUP`] in one picture.
fn group(portraits: &BTreeMap<&str, RgbaImage>) -> RgbaImage {
    let mut picture = RgbaImage::new(1024, 640);
    imageops::vertical_gradient(&mut picture, &LIGHT, &SHADE);
    for (name, x, y, side) in GROUP {
        let portrait = imageops::resize(&portraits[name], side, side, FilterType::CatmullRom);
        imageops::overlay(&mut picture, &portrait, x - i64::from(side / 2), y - i64::from(side / 2));
    }
    picture
}

/// The mean face of a recipe; what is around it is transparent.
fn portrait(dataset: &Dataset, recipe: &Recipe) -> anyhow::Result<RgbaImage> {
    let filter = [recipe.source.split, recipe.filter].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
    let rows = dataset.select(&Filter::parse(&filter.join(","))?)?;
    let aged =
        |row: &&Row| recipe.years.is_none_or(|(from, to)| row.labels.age.is_some_and(|age| (from..=to).contains(&age)));
    let mut people: Vec<_> =
        rows.into_iter().filter(aged).filter_map(|row| Some((alignment(row, &recipe.source.template)?, row))).collect();
    people.sort_by(|((a, _), _), ((b, _), _)| a.total_cmp(b));
    if let Ok(identity) = dataset.column("identity") {
        let mut known = HashSet::new();
        people.retain(|(_, row)| known.insert(row.cell(identity)));
    }
    ensure!(people.len() >= FEWEST, "{} people, fewer than {FEWEST}", people.len());
    people.truncate((people.len() / 2).clamp(FEWEST, MOST));
    println!("{}: {} people", recipe.name, people.len());

    let mut mean = Mean::new();
    for ((_, place), row) in people {
        let picture = decode(&dataset.read(row)?, Limits::default())?;
        mean.add(&picture, &place);
    }
    Ok(mean.portrait(recipe.source))
}

/// How far a face is from a frontal one (the mean distance of its keypoints from the template, in shares of the square),
/// and the place of the square in its picture.
fn alignment(row: &Row, template: &Template) -> Option<(f32, Similarity)> {
    let Landmarks { right_eye, left_eye, nose, mouth } = row.landmarks?;
    let place = template.locate(&row.landmarks?)?;
    let back = place.inverse()?;
    let error = template.right_eye.distance(back.apply(right_eye))
        + template.left_eye.distance(back.apply(left_eye))
        + template.mouth.distance(back.apply(mouth))
        + (back.apply(nose).x - 0.5).abs();
    Some((error / 4.0, place))
}

/// Sums of aligned pictures: a pixel counts where its picture has it.
struct Mean {
    sums: Vec<[f64; 3]>,
    counts: Vec<u32>,
    pictures: u32,
}

impl Mean {
    fn new() -> Self {
        let area = (SIDE * SIDE) as usize;
        Self { sums: vec![[0.0; 3]; area], counts: vec![0; area], pictures: 0 }
    }

    fn add(&mut self, picture: &image::RgbImage, place: &Similarity) {
        let (width, height) = (picture.width() as f32, picture.height() as f32);
        let square = crop(picture, place, SIDE);
        for (index, pixel) in square.pixels().enumerate() {
            let centre = |position: u32| (position as f32 + 0.5) / SIDE as f32;
            let at = place.apply(Point::new(centre(index as u32 % SIDE), centre(index as u32 / SIDE)));
            if (0.0..=width).contains(&at.x) && (0.0..=height).contains(&at.y) {
                for (sum, value) in self.sums[index].iter_mut().zip(pixel.0) {
                    *sum += f64::from(value);
                }
                self.counts[index] += 1;
            }
        }
        self.pictures += 1;
    }

    /// The mean with its contrast restored, cut out by the oval. Where hardly a picture reaches, the colours nearby go on.
    fn portrait(&self, source: &Source) -> RgbaImage {
        // Red, green, blue and the share of pictures that reach here: colours premultiplied by their alpha.
        let sums = self.sums.iter().zip(&self.counts);
        let sums = sums.flat_map(|([r, g, b], count)| [r / 255.0, g / 255.0, b / 255.0, f64::from(*count)]);
        let mean = sums.map(|sum| (sum / f64::from(self.pictures)) as f32).collect();
        let mean = Rgba32FImage::from_raw(SIDE, SIDE, mean).expect("four numbers for each pixel");
        let eyes = SIDE as f32 * source.template.right_eye.distance(source.template.left_eye);
        let (near, far) = (imageops::blur(&mean, 0.055 * eyes), imageops::blur(&mean, 0.21 * eyes));
        RgbaImage::from_fn(SIDE, SIDE, |x, y| {
            let [value, near, far] = [&mean, &near, &far].map(|image| *image.get_pixel(x, y));
            let covered = smooth((value[3] - 0.3) / 0.7);
            let colour = |channel: usize| {
                let [value, near, far] = [value, near, far].map(|pixel| pixel[channel] / pixel[3].max(1e-6));
                let sharp = value + 1.2 * (value - near) + 0.5 * (near - far);
                (255.0 * (far + covered * (sharp - far))).clamp(0.0, 255.0) as u8
            };
            Rgba([colour(0), colour(1), colour(2), (255.0 * source.oval.alpha(x, y)) as u8])
        })
    }
}

impl Oval {
    /// 1 inside, falling to 0 at the edge.
    fn alpha(&self, x: u32, y: u32) -> f32 {
        let centre = |position: u32| (position as f32 + 0.5) / SIDE as f32;
        let radius = ((centre(x) - 0.5) / self.radius_x).hypot((centre(y) - self.centre_y) / self.radius_y);
        smooth((1.0 - radius) / 0.3)
    }
}

/// From 0 to 1 without a kink at either end.
fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

fn write(path: &Path, picture: RgbaImage) -> anyhow::Result<()> {
    let file = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
    let picture = DynamicImage::from(picture).into_rgb8();
    Ok(JpegEncoder::new_with_quality(file, 90).encode_image(&picture)?)
}
