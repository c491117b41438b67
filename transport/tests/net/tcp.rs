//! TCP between two ends in this process.

use std::future::poll_fn;
use std::time::Duration;

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{
    Acceptor, Carrier, Connection, LaneEnds, LaneError, LaneReceiver, LaneSender, OtherLanes, Outbox,
};

use crate::reference::{contents, frame, payload};

/// Nothing here takes so long.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn plain() -> TcpCarrier {
    TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 30))
}

/// The dialling and the accepting end.
pub(crate) async fn pair(carrier: &TcpCarrier) -> (Connection, Connection) {
    let mut acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    (dialled.unwrap(), arrived.unwrap().connection)
}

pub(crate) async fn receive(receiver: &mut dyn LaneReceiver) -> Result<Option<Frame>, LaneError> {
    tokio::time::timeout(DEADLINE, poll_fn(|context| receiver.poll_receive(context))).await.unwrap()
}

pub(crate) async fn send(sender: &mut dyn LaneSender, outbox: &mut Outbox) -> Result<(), LaneError> {
    tokio::time::timeout(DEADLINE, poll_fn(|context| sender.poll_send(context, outbox))).await.unwrap()
}

pub(crate) async fn finish(sender: &mut dyn LaneSender) {
    tokio::time::timeout(DEADLINE, poll_fn(|context| sender.poll_finish(context))).await.unwrap().unwrap();
}

/// Sizes up to the longest payload, both ways at once, in order, and the end after the last.
pub(crate) async fn both_ways(one: LaneEnds, other: LaneEnds) {
    let lengths = [0, 1, 14_336, 16 << 20, 14_336, 14_336, 3, 1 << 20, 65_472, 0, 0, 8_192, 100];
    let one_way = |mut sender: Box<dyn LaneSender>, mut receiver: Box<dyn LaneReceiver>, first: u64| async move {
        let pool = Pool::new(1 << 30);
        let sending = async {
            for (bytes, about) in lengths.iter().zip(first..) {
                send(&mut *sender, &mut Outbox::from([frame(&pool, about, *bytes)])).await.unwrap();
            }
            let mut many: Outbox =
                (first + 100..first + 1_100).map(|about| frame(&pool, about, 64)).collect();
            send(&mut *sender, &mut many).await.unwrap();
            finish(&mut *sender).await;
        };
        let receiving = async {
            receiver.raise(16 << 20);
            for (bytes, about) in lengths.iter().zip(first..) {
                let frame = receive(&mut *receiver).await.unwrap().expect("it was sent");
                assert!(
                    contents(&frame) == (about, payload(about, *bytes)),
                    "frame {about} of {bytes} bytes"
                );
                assert!(frame.payload.is_empty() || (frame.payload.as_ptr() as usize).is_multiple_of(64));
            }
            for about in first + 100..first + 1_100 {
                let frame = receive(&mut *receiver).await.unwrap().expect("it was sent");
                assert!(contents(&frame) == (about, payload(about, 64)), "frame {about}");
            }
            assert!(receive(&mut *receiver).await.unwrap().is_none(), "the end is the end");
        };
        tokio::join!(sending, receiving);
    };
    tokio::join!(one_way(one.sender, other.receiver, 1), one_way(other.sender, one.receiver, 1 << 32));
}

#[tokio::test]
async fn frames_go_both_ways_in_order() {
    let (dialled, arrived) = pair(&plain()).await;
    both_ways(dialled.control, arrived.control).await;
}

/// The other lanes go where the control lane went, and arrive beside it.
#[tokio::test]
async fn lanes_are_connections_of_their_own() {
    let carrier = plain();
    let mut acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    assert!(matches!(arrived.unwrap().connection.lanes, OtherLanes::Awaited { data: None, weights: None }));
    let OtherLanes::Dialled(mut dialler) = dialled.unwrap().lanes else { panic!("TCP dials its lanes") };
    let (lane, arrived) = tokio::join!(dialler.dial(phalanx_transport::Lane::Data, None), acceptor.accept());
    let arrived = arrived.unwrap();
    assert!(!arrived.lane_only, "its first frame says what it is");
    both_ways(lane.unwrap(), arrived.connection.control).await;
}
