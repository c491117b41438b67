//! Rows that go on without some of the experts that they chose.
//!
//! Pure, one row at a time. What a missing expert would have had of a row goes to the others in proportion, so that the routed
//! part keeps its weight beside the residual and the shared experts.

/// Takes the weights of missing experts away from a row and gives the others what they had: each weight that is left is
/// multiplied by `all / left`, where both are sums in f32 by rank, ascending, of all weights and of those that are left.
/// Missing experts have weight 0 then. Where no expert is missing nothing changes, and where none is left all weights are 0.
pub fn leave_out(weights: &mut [f32], is_missing: impl Fn(usize) -> bool) {
    let (mut all, mut left, mut any) = (0.0_f32, 0.0_f32, false);
    for (rank, weight) in weights.iter_mut().enumerate() {
        all += *weight;
        if is_missing(rank) {
            (*weight, any) = (0.0, true);
        } else {
            left += *weight;
        }
    }
    // Gates give no weight below 0; where those that are left have none at all there is nothing to scale.
    if any && left > 0.0 {
        let factor = all / left;
        weights.iter_mut().for_each(|weight| *weight *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(weights: &[f32], missing: &[usize]) -> Vec<f32> {
        let mut weights = weights.to_vec();
        leave_out(&mut weights, |rank| missing.contains(&rank));
        weights
    }

    #[test]
    fn the_sum_stays_and_so_do_proportions() {
        assert_eq!(without(&[0.5, 0.25, 0.25], &[0]), [0.0, 0.5, 0.5]);
        assert_eq!(
            without(&[1.5, 0.5, 0.25, 0.25], &[1, 2]),
            [1.5 * (2.5 / 1.75), 0.0, 0.0, 0.25 * (2.5 / 1.75)]
        );
    }

    /// A row that lacks nothing has the bits that it always had, whatever rounding a scaling would bring.
    #[test]
    fn nothing_changes_where_nothing_is_missing() {
        let weights = [0.1, 0.2, 0.3, 1e-40, 0.4];
        assert_eq!(without(&weights, &[]), weights);
    }

    #[test]
    fn where_nobody_is_left_nothing_is_added() {
        assert_eq!(without(&[0.75, 0.25], &[0, 1]), [0.0, 0.0]);
        assert_eq!(without(&[0.75, 0.0], &[0]), [0.0, 0.0], "and nothing is divided by nothing");
    }
}
