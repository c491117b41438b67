//! Devices and wires that are not there: the bits are those of the real ones, the times those that were asked for.

use std::time::{Duration, Instant};

use crate::support::{Door, Random, Truth, run, runtime, settings, start};
use phalanx_node::Settings;
use transport::carrier::memory::MemoryCarrier;

const MS: Duration = Duration::from_millis(1);

/// Never earlier than the emulated device and wires would let them, and bit for bit what they are without. Only lower bounds:
/// how much later is the machine's affair.
#[test]
fn answers_are_right_and_as_late_as_was_asked_for() {
    let mut truth = Truth::of_demo();
    run(async {
        let carrier = MemoryCarrier::default();
        let mut door = Door::memory(&carrier, "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let emulation = "device=3ms+2ms/row,wire=4ms".parse().ok();
        let node = start(&runtime, Settings { emulation, ..settings(&truth, "n0", vec![door.address()]) });
        let (mut coordinator, join) = door.joined(&truth).await;
        assert_eq!(join.devices[0].kind, "cpu emulating device=3ms+2ms/row,wire=4ms");
        let (layer, _) = truth.layer();
        // Two experts on the first device, one on the second.
        let actors = [(0, 0), (1, 0), (2, 1)].map(|(expert, device)| truth.assignment(layer, expert, device));
        coordinator.hold(1, 1, actors.to_vec()).await;
        let rows = truth.rows(&mut Random::new(3), 6);
        let picked = vec![0, 2, 5];
        for (experts, least) in [(vec![0], 9 + 8), (vec![0, 1], 2 * 9 + 8), (vec![2, 1], 9 + 8)] {
            let groups: Vec<_> = experts.into_iter().map(|expert| (expert, picked.clone())).collect();
            let began = Instant::now();
            let ids = coordinator.dispatch(&truth, layer, &rows, &groups).await;
            let answers = coordinator.answers(&ids).await;
            assert!(began.elapsed() >= least * MS, "{:?} for {groups:?}", began.elapsed());
            for (id, (expert, picked)) in ids.iter().zip(&groups) {
                assert_eq!(answers[id], Ok(truth.compute(layer, *expert, &rows, picked)));
            }
        }
        let busy_us: u64 = node.status().await.loads.iter().map(|load| load.busy_us).sum();
        assert!(busy_us >= 5 * 9_000, "devices are said to have been busy: {busy_us} us");
        node.stop().await;
    });
}
