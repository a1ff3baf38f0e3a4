//! Batches of few sizes, for a GPU: its libraries choose algorithms, and `TensorRT` compiles, for each size that they have not
//! seen. So a batch is filled up to a power of two, and each of these is run once before the first request.

/// The size that a batch is filled up to.
pub(super) const fn bucket(batch: usize) -> usize {
    batch.next_power_of_two()
}

/// The sizes into which batches of up to `most` fall. The smallest and the largest come first: `TensorRT` compiles for the
/// range that it has seen, so what lies between costs no more.
pub(super) fn sizes(most: usize) -> Vec<usize> {
    let largest = bucket(most);
    let between = (1..largest.ilog2()).map(|power| 1 << power);
    let mut sizes = vec![1, largest];
    sizes.dedup();
    sizes.extend(between);
    sizes
}

/// Runs a network on `input`, a tensor of `shape` whose first dimension is the batch, filled up with zeros in `room`; the
/// outputs of what was filled up are left out.
pub(super) fn run_filled<E>(
    input: &[f32],
    shape: &[usize],
    room: &mut Vec<f32>,
    run: impl FnOnce(&[f32], &[usize]) -> Result<Vec<Vec<f32>>, E>,
) -> Result<Vec<Vec<f32>>, E> {
    let [batch, row @ ..] = shape else { return run(input, shape) };
    let (batch, filled) = (*batch, bucket(*batch));
    if filled == batch {
        return run(input, shape);
    }
    room.clear();
    room.extend_from_slice(input);
    room.resize(filled * row.iter().product::<usize>(), 0.0);
    let mut outputs = run(room, &[&[filled], row].concat())?;
    for output in &mut outputs {
        output.truncate(output.len() / filled * batch);
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_batch_falls_into_a_size_that_was_run_before() {
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(2), [1, 2]);
        assert_eq!(sizes(32), [1, 32, 2, 4, 8, 16]);
        for most in 1..=70 {
            let sizes = sizes(most);
            assert!((1..=most).all(|batch| sizes.contains(&bucket(batch))), "{most}: {sizes:?}");
        }
    }

    #[test]
    fn a_batch_is_filled_with_zeros_and_only_its_own_answers_come_back() {
        // Answers the sum of each picture, and its first number and the negated one.
        let network = |input: &[f32], shape: &[usize]| {
            let pictures: Vec<&[f32]> = input.chunks(2).collect();
            assert_eq!((pictures.len(), shape), (4, &[4, 2, 1, 1][..]));
            assert_eq!(pictures[3], [0.0, 0.0]);
            let sums = pictures.iter().map(|picture| picture.iter().sum()).collect();
            Ok::<_, ()>(vec![sums, pictures.iter().flat_map(|picture| [picture[0], -picture[0]]).collect()])
        };
        // What an earlier batch has left must not show.
        let mut room = vec![9.0; 100];
        let outputs = run_filled(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2, 1, 1], &mut room, network).unwrap();
        assert_eq!(outputs, [vec![3.0, 7.0, 11.0], vec![1.0, -1.0, 3.0, -3.0, 5.0, -5.0]]);
    }

    #[test]
    fn a_batch_that_is_full_is_not_copied() {
        let input = [1.0, 2.0, 3.0, 4.0];
        let network = |given: &[f32], shape: &[usize]| {
            assert!(std::ptr::eq(given, &raw const input[..]), "the very same numbers");
            assert_eq!(shape, [4, 1, 1, 1]);
            Err::<Vec<Vec<f32>>, _>("and errors pass")
        };
        assert_eq!(run_filled(&input, &[4, 1, 1, 1], &mut Vec::new(), network), Err("and errors pass"));
    }
}
