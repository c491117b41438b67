//! What nodes and coordinators say to one another of the cluster: who joins, who holds what, how it goes.
//!
//! Pure. These messages travel on the control lane, charged like every message of the application; `Peer::tell`
//! sends one, and `Notice::Told` brings one. Orders are whole, never differences: a node that makes what it holds
//! equal to the newest order of the highest term is right, whatever it missed before.

use bincode::{Decode, Encode};

use super::control::{ControlError, NAME_BYTES_MAX, WORDS_BYTES_MAX, bound, name, text};
use crate::security::Role;

/// Longest `config.json` that is sent.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Devices of one node.
pub const DEVICES_MAX: usize = 1024;
/// Actors of one order.
pub const ACTORS_MAX: usize = 1 << 16;
/// Labels of one node.
pub const LABELS_MAX: usize = 32;
/// Longest value of a label.
pub const LABEL_BYTES_MAX: usize = 255;

/// One actor: one shard of one replica of one expert of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ActorId {
    /// Layer of the model.
    pub layer: u32,
    /// Expert of the layer.
    pub expert: u32,
    /// Which of its replicas.
    pub replica: u8,
    /// Which shard of the replica.
    pub shard: u8,
}

/// One state of the placement. Terms are coordinators' lives as publishers; numbers count up within a term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Epoch {
    /// Of the publisher.
    pub term: u64,
    /// Within the term.
    pub number: u64,
}

/// Said by coordinators, and by nodes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Cluster {
    /// From a coordinator.
    ToNode(ToNode),
    /// From a node.
    ToCoordinator(ToCoordinator),
}

impl Cluster {
    /// Who says it.
    pub fn speaker(&self) -> Role {
        match self {
            Self::ToNode(_) => Role::Coordinator,
            Self::ToCoordinator(_) => Role::Node,
        }
    }

    /// Checks that texts and lists are within their bounds.
    pub fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::ToNode(message) => message.check(),
            Self::ToCoordinator(message) => message.check(),
        }
    }
}

impl ToNode {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Joined(joined) => bound("a configuration", joined.config.len(), CONFIG_BYTES_MAX),
            Self::Hold(hold) => bound("an order", hold.actors.len(), ACTORS_MAX),
            Self::NotJoined { why } | Self::NotServed { why, .. } => text("a reason", why, WORDS_BYTES_MAX),
        }
    }
}

impl ToCoordinator {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Join(join) => join.check(),
            Self::Holding(holding) => {
                bound("a list of actors", holding.failed.len(), ACTORS_MAX)?;
                holding.failed.iter().try_for_each(|(_, why)| text("a reason", why, WORDS_BYTES_MAX))
            }
            Self::Fallen(fallen) => text("a reason", &fallen.why, WORDS_BYTES_MAX),
            Self::Loads(loads) => bound("a list of actors", loads.len(), ACTORS_MAX),
            Self::Progress(_) | Self::Ask(_) | Self::Leaving => Ok(()),
        }
    }
}

impl Join {
    fn check(&self) -> Result<(), ControlError> {
        bound("a list of devices", self.devices.len(), DEVICES_MAX)?;
        self.devices.iter().try_for_each(|device| text("a kind of device", &device.kind, NAME_BYTES_MAX))?;
        bound("a list of labels", self.labels.len(), LABELS_MAX)?;
        for (key, value) in &self.labels {
            name("a label", key)?;
            text("the value of a label", value, LABEL_BYTES_MAX)?;
        }
        bound("a list of actors", self.held.len(), ACTORS_MAX)
    }
}

/// What a coordinator says to a node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToNode {
    /// The answer to [`Join`]: welcome, this is the model.
    Joined(Joined),
    /// The answer to [`Join`]: not so, for this reason. The link is closed after it.
    NotJoined {
        /// In words.
        why: String,
    },
    /// Hold exactly these.
    Hold(Hold),
    /// The answer to [`Ask`] where there is nothing to send; else frames come on the weights lane.
    NotServed {
        /// Of the question.
        ask: u64,
        /// In words.
        why: String,
    },
}

/// What a node says to a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToCoordinator {
    /// The first message of a node.
    Join(Join),
    /// How far an order has been carried out.
    Progress(Progress),
    /// An order has been carried out, as far as it can be.
    Holding(Holding),
    /// An actor fell.
    Fallen(Fallen),
    /// What the actors have done since they began.
    Loads(Vec<Load>),
    /// The tensors of an expert, please.
    Ask(Ask),
    /// This node wants to leave: give its experts to others, then drain the link.
    Leaving,
}

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Join {
    /// Its devices, by number.
    pub devices: Vec<DeviceOffer>,
    /// Topology: `rack`, `host`, and whatever else was given.
    pub labels: Vec<(String, String)>,
    /// The highest term that it has seen.
    pub term: u64,
    /// The digest of `config.json` of its own copy of the checkpoint, if it has one.
    pub checkpoint: Option<[u8; 32]>,
    /// What it holds already, of an earlier session: which actors, on which devices, of which tensors.
    pub held: Vec<Assignment>,
}

/// One device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceOffer {
    /// What it is, for people: `cpu`.
    pub kind: String,
    /// Bytes of weights that it can hold.
    pub memory_bytes: u64,
}

/// What a node has joined.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Joined {
    /// The node's number in this cluster.
    pub node: u32,
    /// The coordinator's term.
    pub term: u64,
    /// Text of `config.json`.
    pub config: Vec<u8>,
    /// Shards of every expert: part of the numeric identity.
    pub shards: u8,
}

/// What a node is to hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hold {
    /// Names the order; a later one replaces it, one of a lower term is stale.
    pub epoch: Epoch,
    /// All of it.
    pub actors: Vec<Assignment>,
}

/// One actor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Assignment {
    /// Which.
    pub actor: ActorId,
    /// On which device of the node.
    pub device: u16,
    /// BLAKE3 of the expert's raw tensor bytes, as the manifest has it.
    pub digest: Option<[u8; 32]>,
}

/// How far an order has been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// Which order.
    pub epoch: Epoch,
    /// Actors that stand.
    pub actors: u32,
    /// Actors of the order.
    pub actors_all: u32,
    /// Bytes loaded for it.
    pub bytes: u64,
}

/// An order has been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Holding {
    /// Which order.
    pub epoch: Epoch,
    /// What could not be held.
    pub failed: Vec<(ActorId, String)>,
}

/// An actor fell.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Fallen {
    /// Which.
    pub actor: ActorId,
    /// In words.
    pub why: String,
    /// How often within the window of the bound.
    pub restarts: u32,
    /// It is not started again: its device counts as lost.
    pub is_lost: bool,
}

/// What an actor has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Load {
    /// Which.
    pub actor: ActorId,
    /// Rows computed.
    pub rows: u64,
    /// Batches computed.
    pub batches: u64,
    /// Time spent computing.
    pub busy_us: u64,
    /// Time that rows waited from their arrival to their return, summed over rows.
    pub service_us: u64,
    /// Rows that wait now.
    pub queued: u32,
}

/// The tensors of an expert, please: as one safetensors file, in frames on the weights lane whose dispatch id is
/// `ask`. Its header says how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// Names the question.
    pub ask: u64,
    /// Layer of the model.
    pub layer: u32,
    /// Expert of the layer.
    pub expert: u32,
}
