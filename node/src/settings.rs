//! What a node is: its name, its devices, whom it serves.
//!
//! Pure. Checked once, by [`Settings::check`], before anything is started; whoever reads arguments and files makes
//! these of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use transport::Limits;
use transport::buffer::Pool;
use transport::carrier::Carrier;
use transport::peer::Peer;
use transport::security::{ClusterId, NameError, check_name};
use transport::wire::cluster::{DEVICES_MAX, LABEL_BYTES_MAX, LABELS_MAX};
use transport::wire::control::{NumericIdentity, is_name};

use crate::emulation::Emulation;
use crate::source::OwnCopy;

/// Where a coordinator is.
#[derive(Clone)]
pub struct CoordinatorAddress {
    /// How it is reached.
    pub carrier: Arc<dyn Carrier>,
    /// Where, as the carrier writes it.
    pub address: String,
}

/// What a node is.
#[derive(Clone)]
pub struct Settings {
    /// Its name in the cluster.
    pub name: String,
    /// Its cluster; where there are certificates, theirs.
    pub cluster: ClusterId,
    /// A random number of this life of the node.
    pub incarnation: u64,
    /// What its numbers are.
    pub numeric: NumericIdentity,
    /// Topology: `rack`, `host` and whatever else placement is to know.
    pub labels: Vec<(String, String)>,
    /// Bytes of weights that each of its devices may hold.
    pub devices: Vec<u64>,
    /// Its coordinators. All of them are served.
    pub coordinators: Vec<CoordinatorAddress>,
    /// Its own copy of the checkpoint, if it has one.
    pub own_copy: Option<Arc<OwnCopy>>,
    /// Where experts are kept that coordinators send, for a node without a copy of the checkpoint.
    pub experts_folder: Option<PathBuf>,
    /// Bounds of its links.
    pub limits: Limits,
    /// What its links receive into, and returns are written to. At least a window for each link, and as much again.
    pub buffers: Pool,
    /// Most rows that an actor computes at once. More read the weights less often; fewer let the actors of other
    /// devices of the same pool take their turn sooner.
    pub batch_rows_max: u32,
    /// How long it goes on serving after it has said that it wants to leave.
    pub leave_max: Duration,
    /// Is told the link that stands, for whoever keeps the node's certificate fresh.
    pub links: Option<watch::Sender<Option<Peer>>>,
    /// Devices and wires that are slower than those of this machine.
    pub emulation: Option<Emulation>,
}

/// The cluster of those who have no certificates.
pub const UNNAMED_CLUSTER: ClusterId = ClusterId([0; 16]);

/// The default of [`Settings::batch_rows_max`]: beyond some hundred rows weights are free.
pub const BATCH_ROWS_MAX: u32 = 512;
/// The default of [`Settings::leave_max`].
pub const LEAVE_MAX: Duration = Duration::from_secs(30);

/// Why a node cannot be so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Its name.
    #[error("--name: {0}")]
    Name(#[from] NameError),
    /// Nobody to serve.
    #[error("no coordinator to join; give at least one with --coordinator HOST:PORT")]
    NoCoordinator,
    /// Too many devices, or none.
    #[error("{0} devices; a node has 1 to {DEVICES_MAX}")]
    Devices(usize),
    /// A device that can hold nothing.
    #[error("device {0} has no memory; give some with --memory, for example 4G")]
    Memory(usize),
    /// Too many labels.
    #[error("{0} labels; a node has at most {LABELS_MAX}")]
    Labels(usize),
    /// A label that nobody could write.
    #[error(
        "the label {key:?}={value:?} cannot be one; letters, digits, `-`, `_` and `.` make a key, and {LABEL_BYTES_MAX} \
         bytes are the longest value"
    )]
    Label {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A label that is given twice.
    #[error("the label {0} is given twice")]
    LabelTwice(String),
    /// A batch without rows.
    #[error("batches of at most 0 rows compute nothing; allow at least 1")]
    BatchRows,
}

impl Settings {
    /// Whether it can be so.
    pub fn check(&self) -> Result<(), SettingsError> {
        check_name(&self.name)?;
        if self.coordinators.is_empty() {
            return Err(SettingsError::NoCoordinator);
        }
        if !(1..=DEVICES_MAX).contains(&self.devices.len()) {
            return Err(SettingsError::Devices(self.devices.len()));
        }
        if let Some(device) = self.devices.iter().position(|bytes| *bytes == 0) {
            return Err(SettingsError::Memory(device));
        }
        if self.labels.len() > LABELS_MAX {
            return Err(SettingsError::Labels(self.labels.len()));
        }
        let mut keys = BTreeSet::new();
        for (key, value) in &self.labels {
            if !is_name(key) || value.len() > LABEL_BYTES_MAX || value.chars().any(char::is_control) {
                return Err(SettingsError::Label { key: key.clone(), value: value.clone() });
            }
            if !keys.insert(key) {
                return Err(SettingsError::LabelTwice(key.clone()));
            }
        }
        if self.batch_rows_max == 0 {
            return Err(SettingsError::BatchRows);
        }
        Ok(())
    }
}
