//! The lanes of a link, and what a frame costs on one.
//!
//! Pure. Lanes never wait for one another: a checkpoint being copied never delays a token, and a token
//! never delays a heartbeat.

use super::HEADER_BYTES;

/// One of the ways of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub enum Lane {
    /// Control messages and heartbeats.
    Control,
    /// Dispatches and returns.
    Data,
    /// Tensors that are being copied.
    Weights,
}

impl Lane {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Weights];
}

impl std::fmt::Display for Lane {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Control => "control",
            Self::Data => "data",
            Self::Weights => "weights",
        })
    }
}

/// One value for each lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct PerLane<T> {
    /// Of the control lane.
    pub control: T,
    /// Of the data lane.
    pub data: T,
    /// Of the weights lane.
    pub weights: T,
}

impl<T> std::ops::Index<Lane> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        match lane {
            Lane::Control => &self.control,
            Lane::Data => &self.data,
            Lane::Weights => &self.weights,
        }
    }
}

impl<T> std::ops::IndexMut<Lane> for PerLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Data => &mut self.data,
            Lane::Weights => &mut self.weights,
        }
    }
}

/// What a frame with such a payload costs in credits: the room it takes in the receiver's pool, which
/// keeps buffers in powers of two, and its header. Both ends must count alike: this is protocol.
pub const fn charge(payload_bytes: u64) -> u64 {
    let room = if payload_bytes == 0 {
        0
    } else if payload_bytes <= 64 {
        64
    } else {
        payload_bytes.next_power_of_two()
    };
    HEADER_BYTES as u64 + room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_costs_its_header_and_its_room() {
        let costs = [0, 1, 64, 65, 14_336, 1 << 20].map(charge);
        assert_eq!(costs, [64, 128, 128, 192, 16_448, (1 << 20) + 64]);
    }
}
