//! Scenes: pictures composed at random, so that a detector meets faces of every size, turn and place, and much that is no face.

use facewise_core::crop::PADDING;
use facewise_core::geometry::{Point, Rect, Similarity};
use facewise_core::picture::RgbImage;
use image::Rgb;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::canvas::{Canvas, Square, intersection, placed};
use super::config::SceneConfig;
use super::data::{Album, Photograph, side};

/// Most canvas pixels to a picture pixel: beyond, a face is a blur that no camera makes.
const MAX_ENLARGEMENT: f32 = 5.0;

/// Composes a scene of `size` × `size` pixels.
///
/// # Panics
/// When the album is empty, or lacks the crops that the configuration asks for.
pub fn compose(album: &Album, size: u32, config: &SceneConfig, random: &mut impl Rng) -> Canvas {
    let canvas = Canvas::new(size, PADDING, config.too_small);
    let mut composer = Composer { album, config, random, canvas };
    let frequencies = config.frequencies();
    let mut draw = composer.random.random_range(0.0..frequencies.iter().sum());
    let kind = frequencies.iter().position(|frequency| {
        draw -= frequency;
        draw < 0.0
    });
    match kind {
        None | Some(0) => composer.photograph(),
        Some(1) => composer.mosaic(),
        Some(2) => composer.crop(),
        Some(3) => composer.paste(),
        Some(_) => composer.negative(),
    }
    let mut canvas = composer.canvas;
    if random.random() {
        canvas.mirror();
    }
    canvas
}

struct Composer<'a, R> {
    album: &'a Album,
    config: &'a SceneConfig,
    random: &'a mut R,
    canvas: Canvas,
}

impl<'a, R: Rng> Composer<'a, R> {
    /// One photograph: as it is served, or at any scale and turn before any background.
    fn photograph(&mut self) {
        let photograph = self.any(&self.album.photographs);
        let size = self.canvas.size();
        if self.chance(0.2) {
            let (width, height) = photograph.picture.dimensions();
            self.canvas.show(photograph, Square::whole(size), &Similarity::around(width, height), 0.0);
            return;
        }
        self.background();
        self.place(photograph, Square::whole(size), 0.95);
    }

    /// 2×2 to 4×4 squares with a photograph or a crop each.
    fn mosaic(&mut self) {
        self.background();
        let cells = self.random.random_range(2..=4);
        let side = self.canvas.size() / cells;
        for cell in 0..cells * cells {
            let square = Square { x: (cell % cells * side) as i32, y: (cell / cells * side) as i32, side };
            let from_crops = !self.album.crops.is_empty() && self.chance(0.15);
            let set = if from_crops { &self.album.crops } else { &self.album.photographs };
            let photograph = self.any(set);
            self.place(photograph, square, 0.85);
        }
    }

    /// A tight crop that fills the frame, as it is served or nearly so.
    fn crop(&mut self) {
        let crop = self.any(&self.album.crops);
        let (width, height) = crop.picture.dimensions();
        let whole = Square::whole(self.canvas.size());
        let around = Similarity::around(width, height);
        if self.chance(0.4) {
            self.canvas.show(crop, whole, &around, 0.0);
            return;
        }
        self.background();
        let size = self.canvas.size() as f32;
        let scale = size / around.scale() * self.log_uniform(0.6, 1.1);
        let centre = Point::new(width as f32 / 2.0, height as f32 / 2.0);
        let at = Point::new(size * self.random.random_range(0.42..0.58), size * self.random.random_range(0.42..0.58));
        let radians = self.turn();
        self.canvas.show(crop, whole, &placed(whole, centre, at, scale, radians), 0.0);
    }

    /// One to six tight crops on a background, most with a border that fades.
    fn paste(&mut self) {
        self.background();
        let size = self.canvas.size() as f32;
        let mut taken: Vec<Rect> = Vec::new();
        for _ in 0..self.random.random_range(1..=6) {
            let crop = self.any(&self.album.crops);
            let (width, height) = (crop.picture.width() as f32, crop.picture.height() as f32);
            let Some(face) = crop.largest() else { return };
            let scale = self.log_uniform(self.config.smallest, size / 2.0) / side(&face);
            let radians = self.turn();
            // Of the upright square that holds the turned crop.
            let room = ((width + height) * scale).ceil().max(2.0);
            let feather = if self.chance(0.7) { 0.12 * width * scale } else { 0.0 };
            for _ in 0..10 {
                let (x, y) = (self.random.random_range(0.0..size), self.random.random_range(0.0..size));
                let own = Rect {
                    x: x - width * scale / 2.0,
                    y: y - height * scale / 2.0,
                    width: width * scale,
                    height: height * scale,
                };
                let apart = |other: &Rect| {
                    let shared = intersection(&own, other);
                    shared.width <= 0.0 || shared.height <= 0.0
                };
                if taken.iter().all(apart) {
                    taken.push(own);
                    let corner = |centre: f32| (centre - room / 2.0).round() as i32;
                    let square = Square { x: corner(x), y: corner(y), side: room as u32 };
                    let place = placed(square, Point::new(width / 2.0, height / 2.0), Point::new(x, y), scale, radians);
                    self.canvas.show(crop, square, &place, feather);
                    break;
                }
            }
        }
    }

    /// No face at all: parts of photographs, texture, or faces taken to pieces.
    fn negative(&mut self) {
        let whole = Square::whole(self.canvas.size());
        match self.random.random_range(0..10) {
            0..5 => {
                let across = self.random.random_range(1..=3);
                self.parts(across);
            }
            5..7 => self.texture(whole),
            _ => self.pieces(),
        }
    }

    /// What lies behind a photograph: often the gray of serving, else a colour, a texture or parts of other photographs.
    fn background(&mut self) {
        match self.random.random_range(0..10) {
            0..4 => {}
            4..6 => {
                let colour = Rgb(self.random.random());
                self.canvas.picture.pixels_mut().for_each(|pixel| *pixel = colour);
            }
            6 => self.texture(Square::whole(self.canvas.size())),
            _ => {
                let across = self.random.random_range(1..=2);
                self.parts(across);
            }
        }
    }

    /// Shows a photograph within a square so that its largest face measures between the smallest allowed and `largest_share` of the square,
    /// evenly on a logarithmic scale, anywhere in the square.
    fn place(&mut self, photograph: &Photograph, square: Square, largest_share: f32) {
        let Some(face) = photograph.largest() else { return };
        let (side, length) = (square.side as f32, side(&face));
        let most = (length * MAX_ENLARGEMENT).min(side * largest_share).max(self.config.smallest * 1.01);
        let wanted = self.log_uniform(self.config.smallest, most);
        // Three tenths of a face may stick out.
        let room = (side - 0.4 * wanted).max(0.1 * side);
        let mut within = |low: i32| low as f32 + side / 2.0 + self.random.random_range(-0.5..0.5) * room;
        let at = Point::new(within(square.x), within(square.y));
        let centre = Point::new(face.x + face.width / 2.0, face.y + face.height / 2.0);
        let radians = self.turn();
        self.canvas.show(photograph, square, &placed(square, centre, at, wanted / length, radians), 0.0);
    }

    /// Fills the canvas with squares of photographs that hold no face.
    fn parts(&mut self, across: u32) {
        let side = self.canvas.size().div_ceil(across);
        for cell in 0..across * across {
            let square = Square { x: (cell % across * side) as i32, y: (cell / across * side) as i32, side };
            let part = (0..8).find_map(|_| {
                let photograph = self.any(&self.album.photographs);
                self.faceless(photograph).map(|part| (photograph, part))
            });
            match part {
                Some((photograph, part)) => self.canvas.draw(&photograph.picture, square, &part, 0.0),
                None => self.texture(square),
            }
        }
    }

    /// A random square of a photograph that keeps away from its faces.
    fn faceless(&mut self, photograph: &Photograph) -> Option<Similarity> {
        let (width, height) = (photograph.picture.width() as f32, photograph.picture.height() as f32);
        let side = width.min(height) * self.random.random_range(0.2..0.7);
        let x = self.random.random_range(0.0..=width - side);
        let y = self.random.random_range(0.0..=height - side);
        let part = Rect { x, y, width: side, height: side };
        let apart = |face: &Rect| {
            // Hair and neck are of the face too.
            let shared = intersection(&part, &grown(face, 0.3));
            shared.width <= 0.0 || shared.height <= 0.0
        };
        let truth = &photograph.truth;
        let free = truth.faces.iter().map(|face| &face.area).chain(&truth.ignored).all(apart);
        free.then(|| Similarity::onto_square(x, y, side))
    }

    /// Random colours at a random coarseness, blurred into each other.
    fn texture(&mut self, square: Square) {
        let cells = self.random.random_range(2..=48);
        let base: [u8; 3] = self.random.random();
        let spread = self.random.random_range(5..128);
        let mut picture = RgbImage::new(cells, cells);
        for value in picture.pixels_mut() {
            let brightness = self.random.random_range(-spread..=spread);
            value.0 = base.map(|channel| (i32::from(channel) + brightness).clamp(0, 255) as u8);
        }
        self.canvas.draw(&picture, square, &Similarity::onto_square(0.0, 0.0, cells as f32), 0.0);
    }

    /// Small pieces of faces, shuffled: none of them is a face.
    fn pieces(&mut self) {
        let across = self.random.random_range(4..=10);
        let side = self.canvas.size().div_ceil(across);
        let photograph = self.any(&self.album.photographs);
        let share = self.random.random_range(0.12..0.3);
        for cell in 0..across * across {
            let Some(face) = photograph.truth.faces.choose(self.random) else { return };
            let area = grown(&face.area, 0.2);
            let piece = face.area.width * share;
            let x = area.x + self.random.random_range(0.0..1.0) * (area.width - piece);
            let y = area.y + self.random.random_range(0.0..1.0) * (area.height - piece);
            let square = Square { x: (cell % across * side) as i32, y: (cell / across * side) as i32, side };
            self.canvas.draw(&photograph.picture, square, &Similarity::onto_square(x, y, piece), 0.0);
        }
    }

    fn any(&mut self, set: &'a [Photograph]) -> &'a Photograph {
        set.choose(self.random).expect("a set to compose from has pictures")
    }

    fn chance(&mut self, probability: f32) -> bool {
        self.random.random::<f32>() < probability
    }

    fn log_uniform(&mut self, low: f32, high: f32) -> f32 {
        (low.ln() + (high.ln() - low.ln()) * self.random.random::<f32>()).exp()
    }

    /// A rotation in radians, small ones more often than large ones.
    fn turn(&mut self) -> f32 {
        let draw = self.random.random_range(-1.0..1.0f32);
        self.config.rotation.to_radians() * draw * draw.abs()
    }
}

fn grown(area: &Rect, share: f32) -> Rect {
    let (dx, dy) = (area.width * share, area.height * share);
    Rect { x: area.x - dx, y: area.y - dy, width: area.width + 2.0 * dx, height: area.height + 2.0 * dy }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::testing::album;
    use super::*;

    /// Only the kind at this position.
    fn only(kind: usize) -> SceneConfig {
        let frequency = |index: usize| if index == kind { 1.0 } else { 0.0 };
        SceneConfig {
            photograph: frequency(0),
            mosaic: frequency(1),
            crop: frequency(2),
            paste: frequency(3),
            negative: frequency(4),
            rotation: 30.0,
            smallest: 12.0,
            too_small: 10.0,
        }
    }

    fn composed(kind: usize, seed: u64) -> Canvas {
        compose(&album(), 96, &only(kind), &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_scene_depends_on_its_seed_alone() {
        for kind in 0..5 {
            let [one, again, other] = [3, 3, 4].map(|seed| composed(kind, seed));
            assert_eq!(one.picture.dimensions(), (96, 96));
            assert!(one.picture == again.picture && one.truth == again.truth, "kind {kind}");
            assert!(one.picture != other.picture, "kind {kind}");
        }
    }

    #[test]
    fn faces_are_where_they_are_said_to_be() {
        let mut largest = 0.0f32;
        let mut smallest = f32::INFINITY;
        for kind in 0..4 {
            let mut faces = 0;
            for seed in 0..40 {
                let canvas = composed(kind, seed);
                for face in &canvas.truth.faces {
                    let side = face.area.width;
                    (largest, smallest) = (largest.max(side), smallest.min(side));
                    assert!(side >= 10.0);
                    faces += 1;
                    // The mouth is drawn red: more so than anything else.
                    let at = face.landmarks.mouth;
                    let inside = (0.0..96.0).contains(&at.x) && (0.0..96.0).contains(&at.y);
                    if inside && side >= 24.0 && kind == 0 {
                        let [r, g, b] = canvas.picture.get_pixel(at.x as u32, at.y as u32).0;
                        assert!(r > 120 && g < 80 && b < 80, "kind {kind}, seed {seed}: {r} {g} {b} at {at:?}");
                    }
                }
            }
            assert!(faces >= 30, "kind {kind} has {faces} faces in 40 scenes");
        }
        assert!(smallest < 14.0 && largest > 80.0, "sides from {smallest} to {largest}");
    }

    #[test]
    fn negatives_have_no_faces() {
        assert!((0..40).all(|seed| composed(4, seed).truth.faces.is_empty()));
    }
}
