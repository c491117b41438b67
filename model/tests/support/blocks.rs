//! Packed weights, compared bit by bit.

use phalanx_model::kernel::{Matrix, Placement};
use phalanx_model::weights::Block;

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub fn assert_same_matrix(found: &Matrix, wanted: &Matrix, placements: &[Placement], what: &str) {
    assert_eq!(found.shape(), wanted.shape(), "{what}");
    for &placement in placements {
        for column in 0..found.n() / placements.len() {
            let (found, wanted) = (found.column(placement, column), wanted.column(placement, column));
            assert_eq!(bits(&found), bits(&wanted), "{what}, {placement:?} {column}");
        }
    }
}

pub fn assert_same_block(found: &Block, wanted: &Block, what: &str) {
    assert_same_matrix(&found.gate_up, &wanted.gate_up, &[Placement::Gate, Placement::Up], what);
    assert_same_matrix(&found.down, &wanted.down, &[Placement::Plain], what);
    assert_eq!(found.gate_up_bias, wanted.gate_up_bias, "{what}");
    assert_eq!(found.down_bias, wanted.down_bias, "{what}");
    assert_eq!(found.activation, wanted.activation, "{what}");
}
