//! What each cell of the network's maps should say about a scene.

use facewise_core::detection::STRIDES;
use facewise_core::geometry::{Point, Rect};
use facewise_evaluation::detection::{Face, Truth};

use super::canvas::{Square, intersection};
use super::config::TargetConfig;
use super::data::side;

/// A level says nothing wrong about faces up to this factor beyond its range.
const TOLERANCE: f32 = 1.5;

/// Targets of a batch. Cells are counted over the pictures, in each over the levels, in each row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// For every cell 1, or 0 where its score does not count.
    pub counted: Vec<f32>,
    /// The cells that answer for a face, in rising order; the rest has one entry for each of them.
    pub cells: Vec<i64>,
    /// Distances in strides from the cell's centre to the left, upper, right and lower edge of the box; positive.
    pub distances: Vec<[f32; 4]>,
    /// Offsets in strides from the cell's centre to right eye, left eye, nose and mouth.
    pub offsets: Vec<[f32; 8]>,
    /// Side of the box in strides, as the root of its area.
    pub sides: Vec<f32>,
}

/// The targets of pictures of `size` × `size` pixels.
pub fn targets<'a>(truths: impl IntoIterator<Item = &'a Truth>, size: u32, config: &TargetConfig) -> Targets {
    let mut targets = Targets::default();
    for truth in truths {
        let first = targets.counted.len() as i64;
        let says = cells(truth, size, config);
        for (index, (cell, says)) in every_cell(size).zip(&says).enumerate() {
            targets.counted.push(if *says == Says::Anything { 0.0 } else { 1.0 });
            if let Says::Face(face) = says {
                targets.cells.push(first + index as i64);
                targets.push(cell, &truth.faces[*face]);
            }
        }
    }
    targets
}

impl Targets {
    fn push(&mut self, cell: Cell, face: &Face) {
        let Rect { x, y, width, height } = face.area;
        let Point { x: column, y: row } = cell.centre;
        let edges = [column - x, row - y, x + width - column, y + height - row];
        self.distances.push(edges.map(|distance| distance / cell.stride));
        let marks = face.landmarks;
        let points = [marks.right_eye, marks.left_eye, marks.nose, marks.mouth];
        let mut offsets = [0.0; 8];
        for (pair, point) in offsets.chunks_exact_mut(2).zip(points) {
            pair.copy_from_slice(&[(point.x - column) / cell.stride, (point.y - row) / cell.stride]);
        }
        self.offsets.push(offsets);
        self.sides.push(side(&face.area) / cell.stride);
    }
}

/// What a cell should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// No face.
    Nothing,
    /// It does not matter.
    Anything,
    /// The face of this number.
    Face(usize),
}

#[derive(Clone, Copy)]
struct Cell {
    level: usize,
    stride: f32,
    centre: Point,
}

fn every_cell(size: u32) -> impl Iterator<Item = Cell> {
    STRIDES.into_iter().enumerate().flat_map(move |(level, stride)| {
        let side = size / stride;
        let stride = stride as f32;
        (0..side * side).map(move |cell| Cell {
            level,
            stride,
            centre: Point::new(((cell % side) as f32 + 0.5) * stride, ((cell / side) as f32 + 0.5) * stride),
        })
    })
}

fn cells(truth: &Truth, size: u32, config: &TargetConfig) -> Vec<Says> {
    let frame = Square::whole(size).rect();
    // The smaller face comes later and takes the cell.
    let mut order: Vec<usize> = (0..truth.faces.len()).collect();
    let size_of = |face: usize| side(&truth.faces[face].area);
    order.sort_by(|a, b| size_of(*b).total_cmp(&size_of(*a)));
    let says = |cell: Cell| {
        let inside_ignored = truth.ignored.iter().any(|region| margin(region, cell.centre) >= 0.0);
        let mut says = if inside_ignored { Says::Anything } else { Says::Nothing };
        for &face in &order {
            let area = &truth.faces[face].area;
            if margin(area, cell.centre) <= 0.0 || !near_centre(&intersection(area, &frame), cell, config.radius) {
                continue;
            }
            let [low, high] = config.sides[cell.level];
            if (low..=high).contains(&size_of(face)) {
                says = Says::Face(face);
            } else if (low / TOLERANCE..=high * TOLERANCE).contains(&size_of(face)) && says == Says::Nothing {
                says = Says::Anything;
            }
        }
        says
    };
    every_cell(size).map(says).collect()
}

/// Distance from a point to the nearest edge of a box, negative outside.
fn margin(area: &Rect, at: Point) -> f32 {
    (at.x - area.x).min(area.x + area.width - at.x).min(at.y - area.y).min(area.y + area.height - at.y)
}

/// Whether a cell's centre is at most `radius` strides from the centre of what is visible of a box.
fn near_centre(visible: &Rect, cell: Cell, radius: f32) -> bool {
    let (x, y) = (visible.x + visible.width / 2.0, visible.y + visible.height / 2.0);
    (x - cell.centre.x).abs().max((y - cell.centre.y).abs()) <= radius * cell.stride
}

#[cfg(test)]
mod tests {
    use super::super::testing::face;
    use super::*;

    const CONFIG: TargetConfig =
        TargetConfig { radius: 1.0, sides: [[0.0, 40.0], [28.0, 112.0], [80.0, f32::INFINITY]] };
    /// Of a picture of 64 px: cells of the levels before each.
    const FIRST: [usize; 3] = [0, 64, 80];

    fn of(faces: Vec<Face>, ignored: Vec<Rect>) -> Targets {
        targets([&Truth { faces, ignored }], 64, &CONFIG)
    }

    #[test]
    fn a_face_is_told_by_the_cells_at_its_centre() {
        // Centre at (24, 20): on the corner of columns 2 and 3, in the middle of row 2.
        let targets = of(vec![face(12.0, 8.0, 24.0)], Vec::new());
        let cells: Vec<i64> = [1, 2, 3].iter().flat_map(|row| [2, 3].map(|column| row * 8 + column)).collect();
        assert_eq!(targets.cells, cells);
        assert_eq!(targets.counted.len(), 64 + 16 + 4);
        // Cell (2, 2) has its centre at (20, 20).
        let index = 2;
        assert_eq!(targets.cells[index], 18);
        let close = |a: f32, b: f32| (a - b).abs() < 1e-5;
        assert!(targets.distances[index].iter().zip([1.0, 1.5, 2.0, 1.5]).all(|(a, b)| close(*a, b)));
        assert!(close(targets.sides[index], 3.0));
        // Right eye at (19.2, 15.2), mouth at (24, 26).
        assert!(close(targets.offsets[index][0], -0.1) && close(targets.offsets[index][1], -0.6));
        assert!(close(targets.offsets[index][6], 0.5) && close(targets.offsets[index][7], 0.75));
        // 24 px is near the next level's range, which is not asked.
        let level: Vec<usize> = (FIRST[1]..FIRST[2]).filter(|cell| targets.counted[*cell] < 0.5).collect();
        assert!(!level.is_empty());
        assert!(targets.counted[FIRST[2]..].iter().all(|counted| *counted > 0.5), "the coarsest must say no");
    }

    #[test]
    fn a_face_between_two_levels_is_told_by_both() {
        let targets = of(vec![face(14.0, 14.0, 36.0)], Vec::new());
        let in_level =
            |first: usize, end: usize| targets.cells.iter().any(|cell| (first..end).contains(&(*cell as usize)));
        assert!(in_level(FIRST[0], FIRST[1]) && in_level(FIRST[1], FIRST[2]));
        assert!(!in_level(FIRST[2], 84), "too small for the coarsest");
    }

    #[test]
    fn the_smaller_face_takes_a_disputed_cell() {
        let (large, small) = (face(10.0, 10.0, 36.0), face(20.0, 20.0, 14.0));
        for faces in [vec![large, small], vec![small, large]] {
            let targets = of(faces, Vec::new());
            // The cell (3, 3) has its centre at (28, 28), within both.
            let index = targets.cells.iter().position(|cell| *cell == 27).expect("it answers");
            assert!((targets.sides[index] - 14.0 / 8.0).abs() < 1e-5);
        }
    }

    #[test]
    fn ignored_regions_do_not_count() {
        let region = Rect { x: 0.0, y: 0.0, width: 24.0, height: 8.0 };
        let targets = of(Vec::new(), vec![region]);
        let silent: Vec<usize> = (0..64).filter(|cell| targets.counted[*cell] < 0.5).collect();
        assert_eq!(silent, [0, 1, 2]);
        assert!(targets.cells.is_empty());
    }

    #[test]
    fn a_face_over_the_edge_is_told_by_cells_that_see_it() {
        let targets = of(vec![face(-14.0, 20.0, 36.0)], Vec::new());
        assert!(!targets.cells.is_empty());
        assert!(targets.distances.iter().flatten().all(|distance| *distance > 0.0));
    }

    #[test]
    fn each_picture_has_its_own_cells() {
        let truths = [Truth::default(), Truth { faces: vec![face(12.0, 8.0, 24.0)], ignored: Vec::new() }];
        let both = targets(&truths, 64, &CONFIG);
        let alone = targets(&truths[1..], 64, &CONFIG);
        assert_eq!(both.cells, alone.cells.iter().map(|cell| cell + 84).collect::<Vec<_>>());
        assert_eq!(both.counted.len(), 168);
    }

    #[test]
    fn every_face_large_enough_has_a_cell() {
        for side in 10..64 {
            for shift in 0..8 {
                let targets = of(vec![face(shift as f32, 0.5, side as f32)], Vec::new());
                assert!(!targets.cells.is_empty(), "side {side} at {shift}");
            }
        }
    }
}
