//! What the carriers are measured beside: the least programs of the same kind that somebody would write.
//!
//! They have no header, no checksum, no credits and no deadlines. All but the actors run in two
//! processes, and obey [`Order`]s.

pub(super) mod actors;
pub(super) mod quic;
pub(super) mod ring;
pub(super) mod stream;
pub(super) mod tcp;

use super::contest::Contestant;

/// What the echoing end is to do next: it goes ahead of the messages of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// Whether each message is sent back; else a word is, after the last.
    is_echo: bool,
    bytes: usize,
    count: usize,
}

/// Of an order.
const ORDER_BYTES: usize = 24;
/// What comes after the last message of one way.
const WORD: [u8; 8] = *b"all came";

impl Order {
    fn write(self) -> [u8; ORDER_BYTES] {
        let mut bytes = [0; ORDER_BYTES];
        let fields = [u64::from(self.is_echo), self.bytes as u64, self.count as u64];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: [u8; ORDER_BYTES]) -> Self {
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self { is_echo: field(0) == 1, bytes: field(8) as usize, count: field(16) as usize }
    }
}

/// Bytes of a message, no two of a cache line alike.
pub(super) fn message(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 64) as u8).collect()
}

/// What came back must be what was sent.
pub(super) fn check(sent: &[u8], returned: &[u8]) -> Result<(), crate::Failure> {
    if sent == returned {
        return Ok(());
    }
    let wrong = sent.iter().zip(returned).position(|(a, b)| a != b).unwrap_or(sent.len().min(returned.len()));
    Err(format!("of {} bytes sent, {} came back, wrong from byte {wrong}", sent.len(), returned.len()).into())
}

/// What these modules make.
pub(super) type Made = Result<Box<dyn Contestant>, crate::Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_wire() {
        let order = Order { is_echo: true, bytes: 14_336, count: 1 << 18 };
        assert_eq!(Order::read(order.write()), order);
    }

    #[test]
    fn one_wrong_byte_is_noticed() {
        let sent = message(100);
        let mut returned = sent.clone();
        assert!(check(&sent, &returned).is_ok());
        returned[99] ^= 1;
        let wrong = check(&sent, &returned).expect_err("it differs").to_string();
        assert!(wrong.contains("byte 99"), "{wrong}");
        assert!(check(&sent, &sent[..99]).is_err());
    }
}
