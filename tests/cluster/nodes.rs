//! Nodes of the tests' process, with a copy of the checkpoint each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::load::Opened;
use node::settings::{BATCH_ROWS_MAX, LEAVE_MAX};
use node::source::OwnCopy;
use node::{CoordinatorAddress, NodeHandle, Runtime};
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::security::ClusterId;
use transport::wire::control::NumericIdentity;

pub(crate) const CLUSTER: ClusterId = ClusterId([3; 16]);
/// More than any model of these tests needs.
pub(crate) const WIDE: u64 = 1 << 30;

/// Each node that is started is another life.
static INCARNATIONS: AtomicU64 = AtomicU64::new(1);

/// Starts one of two devices with so much memory each, which dials that coordinator.
pub(crate) fn start_node(
    runtime: &Runtime,
    opened: &Arc<Opened>,
    numeric: NumericIdentity,
    number: u32,
    memory: u64,
    coordinator: CoordinatorAddress,
) -> NodeHandle {
    let settings = node::Settings {
        name: format!("n{number}"),
        cluster: CLUSTER,
        incarnation: INCARNATIONS.fetch_add(1, Ordering::Relaxed),
        numeric,
        labels: Vec::new(),
        devices: vec![memory; 2],
        coordinators: vec![coordinator],
        own_copy: Some(Arc::new(OwnCopy::new(Arc::clone(opened), None))),
        experts_folder: None,
        limits: Limits::default(),
        buffers: Buffers::new(1 << 30),
        batch_rows_max: BATCH_ROWS_MAX,
        leave_max: LEAVE_MAX,
        links: None,
        emulation: None,
    };
    node::start(runtime, settings).unwrap()
}
