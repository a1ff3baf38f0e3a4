//! The detector's loss: is there a face, where is its box, where are its keypoints.

use facewise_core::detection::CHANNELS;
use tch::{Kind, Reduction, Tensor};

use super::config::LossConfig;
use super::target::Targets;
use crate::lesson::Losses;

/// Logarithms of distances are taken as at most this: e⁵ strides are more than a picture, and gradients beyond would only do harm.
const LARGEST_LOG: f64 = 5.0;

/// Names of the parts of the loss.
pub const PARTS: [&str; 3] = ["score", "area", "keypoints"];

/// The loss of the network's maps, one `[n, 13, rows, columns]` for each level, in the order of [`PARTS`].
pub fn loss(maps: &[Tensor], targets: &Targets, config: &LossConfig) -> Losses {
    let device = maps[0].device();
    let cells: Vec<Tensor> = maps.iter().map(|map| map.flatten(2, 3)).collect();
    let rows = Tensor::cat(&cells, 2).permute([0, 2, 1]).reshape([-1, CHANNELS as i64]);
    let logits = rows.select(1, 0);
    let mut wanted = logits.zeros_like();
    let n = targets.cells.len();
    let answers = n.max(1) as f64;

    let (area, keypoints) = if n == 0 {
        let nothing = || Tensor::zeros([], (Kind::Float, device));
        (nothing(), nothing())
    } else {
        let numbers = |values: &[f32], columns: i64| Tensor::from_slice(values).view([-1, columns]).to_device(device);
        let index = Tensor::from_slice(&targets.cells).to_device(device);
        let answering = rows.index_select(0, &index);
        let distances = answering.narrow(1, 1, 4).clamp_max(LARGEST_LOG).exp();
        let (iou, diou) = overlap(&distances, &numbers(targets.distances.as_flattened(), 4));
        let quality: Tensor = iou.detach() * config.quality + (1.0 - config.quality);
        let _ = wanted.index_copy_(0, &index, &quality);

        let errors =
            (answering.narrow(1, 5, 8) - numbers(targets.offsets.as_flattened(), 8)) / numbers(&targets.sides, 1);
        let keypoints = errors.smooth_l1_loss(&errors.zeros_like(), Reduction::Sum, config.keypoint_beta) / answers;
        (1.0_f64 - diou.mean(Kind::Float), keypoints)
    };

    let counted = Tensor::from_slice(&targets.counted).to_device(device);
    let cross_entropy = logits.binary_cross_entropy_with_logits::<Tensor>(&wanted, None, None, Reduction::None);
    let focus = (&wanted - logits.sigmoid()).abs().pow_tensor_scalar(config.focus);
    let score = (cross_entropy * focus * counted).sum(Kind::Float) / answers;

    let total = &score * config.score + &area * config.area + &keypoints * config.keypoints;
    Losses { total, parts: vec![score.detach(), area.detach(), keypoints.detach()] }
}

/// Intersection over union of boxes given by the distances from a common point inside to their edges, and the same less the squared
/// distance of the centres over the squared diagonal of the box around both (Zheng et al. 2020, arXiv:1911.08287, equation 7). The
/// gradient flows to the first.
fn overlap(boxes: &Tensor, truths: &Tensor) -> (Tensor, Tensor) {
    let sides = |distances: &Tensor| {
        let [left, top, right, bottom] = [0, 1, 2, 3].map(|edge| distances.select(1, edge));
        (left + right, top + bottom)
    };
    let area = |distances: &Tensor| {
        let (width, height) = sides(distances);
        width * height
    };
    let intersection = area(&boxes.minimum(truths));
    let iou = &intersection / (area(boxes) + area(truths) - &intersection);
    // Twice the shift of the centre: right less left, bottom less top.
    let doubled = |distances: &Tensor| distances.narrow(1, 2, 2) - distances.narrow(1, 0, 2);
    let shift = (doubled(boxes) - doubled(truths)).square().sum_dim_intlist([1].as_slice(), false, Kind::Float) / 4.0;
    let (width, height) = sides(&boxes.maximum(truths));
    let diou = &iou - shift / (width.square() + height.square());
    (iou, diou)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use facewise_evaluation::detection::Truth;
    use tch::Device;

    use super::super::config::TargetConfig;
    use super::super::target::targets;
    use super::super::testing::face;
    use super::*;

    const CONFIG: LossConfig =
        LossConfig { score: 1.0, focus: 2.0, quality: 0.5, area: 2.0, keypoints: 3.0, keypoint_beta: 0.01 };
    const TARGET: TargetConfig =
        TargetConfig { radius: 1.25, sides: [[0.0, 40.0], [28.0, 112.0], [80.0, f32::INFINITY]] };
    const SIZE: u32 = 64;

    fn truth() -> Truth {
        Truth { faces: vec![face(12.0, 8.0, 24.0), face(30.0, 24.0, 36.0)], ignored: Vec::new() }
    }

    fn the_targets() -> Targets {
        targets([&truth()], SIZE, &TARGET)
    }

    /// Maps that say everything right: the score as a logit of ±10.
    fn perfect(targets: &Targets) -> Tensor {
        let rows = Tensor::zeros([84, 13], (Kind::Float, Device::Cpu));
        let _ = rows.select(1, 0).fill_(-10.0);
        for (index, cell) in targets.cells.iter().enumerate() {
            let mut row = vec![10.0];
            row.extend(targets.distances[index].map(f32::ln));
            row.extend(targets.offsets[index]);
            rows.get(*cell).copy_(&Tensor::from_slice(&row));
        }
        rows
    }

    fn maps(rows: &Tensor) -> Vec<Tensor> {
        [(0, 8), (64, 4), (80, 2)]
            .map(|(first, side)| rows.narrow(0, first, side * side).transpose(0, 1).reshape([1, 13, side, side]))
            .into()
    }

    fn parts(rows: &Tensor, targets: &Targets) -> Vec<f64> {
        loss(&maps(rows), targets, &CONFIG).parts.iter().map(|part| part.double_value(&[])).collect()
    }

    #[test]
    fn nothing_is_lost_on_the_truth() {
        let targets = the_targets();
        assert!(parts(&perfect(&targets), &targets).iter().all(|part| part.abs() < 1e-4));
    }

    #[test]
    fn parts_by_hand() {
        let targets = the_targets();
        let n = targets.cells.len() as f64;
        let at = targets.cells[0];
        // The right eye of one cell half a side too far to the right.
        let rows = perfect(&targets);
        let _ = rows.get(at).narrow(0, 5, 1).g_add_scalar_(f64::from(targets.sides[0]) * 0.5);
        let found = parts(&rows, &targets);
        assert!((found[2] - (0.5 - 0.005) / n).abs() < 1e-5, "{found:?}");
        // A box of twice all distances from its cell: a quarter of the area, and half the shift of the centre.
        let rows = perfect(&targets);
        let _ = rows.get(at).narrow(0, 1, 4).g_add_scalar_(2f64.ln());
        let [left, top, right, bottom] = targets.distances[0].map(f64::from);
        let shift = ((right - left).powi(2) + (bottom - top).powi(2)) / 4.0;
        let diagonal = 4.0 * ((left + right).powi(2) + (top + bottom).powi(2));
        let found = parts(&rows, &targets);
        assert!((found[1] - (1.0 - 0.25 + shift / diagonal) / n).abs() < 1e-5, "{found:?}");
        // An undecided cell without a face: (1/2)² · ln 2.
        let rows = perfect(&targets);
        let _ = rows.get(7).narrow(0, 0, 1).zero_();
        let found = parts(&rows, &targets);
        assert!((found[0] - 0.25 * 2f64.ln() / n).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn an_ignored_cell_may_say_anything() {
        let ignored = vec![facewise_core::geometry::Rect { x: 0.0, y: 56.0, width: 8.0, height: 8.0 }];
        let targets = targets([&Truth { ignored, ..truth() }], SIZE, &TARGET);
        let rows = perfect(&targets);
        let _ = rows.get(56).narrow(0, 0, 1).fill_(10.0);
        assert!(parts(&rows, &targets)[0] < 1e-4);
        let _ = rows.get(57).narrow(0, 0, 1).fill_(10.0);
        assert!(parts(&rows, &targets)[0] > 0.5);
    }

    #[test]
    fn a_scene_without_faces_has_a_loss_with_a_gradient() {
        let targets = targets([&Truth::default()], SIZE, &TARGET);
        let rows = Tensor::zeros([84, 13], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let losses = loss(&maps(&rows), &targets, &CONFIG);
        losses.total.backward();
        assert!(losses.total.double_value(&[]).is_finite());
        assert!(rows.grad().select(1, 0).min().double_value(&[]) > 0.0, "every cell should say no");
        assert!(rows.grad().narrow(1, 1, 12).abs().max().double_value(&[]) < 1e-12);
    }
}
