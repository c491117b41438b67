//! Who we are: dials peers, or takes them.

use std::time::Instant;

use super::handle::Opened;
use super::handshake::Handshake;
use super::listener::Listener;
use crate::Limits;
use crate::buffer::Pool;
use crate::carrier::{Acceptor, Carrier, ConnectError, Connection, OtherLanes};
use crate::limits::LimitsError;
use crate::link::{Ended, Link, Local, Side};
use crate::wire::ControlError;

/// One end of links: a name, its limits and its memory. Clones are the same end.
#[derive(Clone)]
pub struct Endpoint {
    local: Local,
    limits: Limits,
    pool: Pool,
}

/// Why there is no such end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Its limits contradict one another.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// What it would say of itself is nothing that a peer takes.
    #[error("this end cannot introduce itself: {0}")]
    Local(#[from] ControlError),
}

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There was one, and the handshake failed.
    #[error("{0}")]
    Ended(Ended),
    /// The carrier took longer than a handshake may.
    #[error(
        "{address} was not reached within {within:?}; is it the right address, and does a firewall drop it?"
    )]
    TooLong {
        /// Where.
        address: String,
        /// How long was waited.
        within: std::time::Duration,
    },
}

impl Endpoint {
    /// An end of that name. Limits that contradict one another and names that no peer takes are refused here,
    /// not on the first frame.
    pub fn new(local: Local, limits: Limits, pool: Pool) -> Result<Self, EndpointError> {
        local.check()?;
        limits.check()?;
        limits.check_row(local.row_bytes)?;
        Ok(Self { local, limits, pool })
    }

    /// Connects to a peer and opens a link with it.
    pub async fn dial(&self, carrier: &dyn Carrier, address: &str) -> Result<Opened, DialError> {
        let within = self.limits.handshake_max;
        let connection = match tokio::time::timeout(within, carrier.dial(address)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(DialError::TooLong { address: address.to_owned(), within }),
        };
        self.handshake(Side::Dialled, connection, [0; 16]).run().await.map_err(DialError::Ended)
    }

    /// Takes peers that arrive at `acceptor`. It works in tasks of its own until it is dropped.
    pub fn listen(&self, acceptor: Box<dyn Acceptor>) -> Listener {
        Listener::start(self.clone(), acceptor)
    }

    /// A handshake about to begin. `session` names the link where this is the accepting end.
    pub(super) fn handshake(&self, side: Side, connection: Connection, session: [u8; 16]) -> Handshake {
        let Connection { control, lanes, peer, address, .. } = connection;
        let now = Instant::now();
        let (lanes_ready, ports) = match &lanes {
            OtherLanes::Ready { .. } => (true, [None; 2]),
            OtherLanes::Dialled(_) => (false, [None; 2]),
            OtherLanes::Awaited { data, weights } => (false, [*data, *weights]),
        };
        let link = Link::new(side, self.local.clone(), self.limits, peer, lanes_ready, session, ports, now);
        let (data, weights, dialler) = match lanes {
            OtherLanes::Ready { data, weights } => (Some(data), Some(weights), None),
            OtherLanes::Dialled(dialler) => (None, None, Some(dialler)),
            OtherLanes::Awaited { .. } => (None, None, None),
        };
        Handshake {
            link,
            control,
            data,
            weights,
            pool: self.pool.clone(),
            limits: self.limits,
            address,
            session,
            arriving: None,
            dialler,
            outbox: Default::default(),
            deadline: now + self.limits.handshake_max,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{ClusterId, PeerName, Role};

    /// Otherwise its own `Hello` could not be sent, and the handshake would only take too long.
    #[test]
    fn what_no_peer_would_take_is_refused_at_once() {
        let local = |name: &str, program: &str| Local {
            peer: PeerName { cluster: ClusterId([1; 16]), role: Role::Node, name: name.to_owned() },
            program: program.to_owned(),
            incarnation: 1,
            numeric: None,
            row_bytes: 0,
            mixed_classes: false,
        };
        let new = |local| Endpoint::new(local, Limits::default(), Pool::new(1 << 20)).map(|_| ());
        assert_eq!(new(local("node-1", "phalanx")), Ok(()));
        for bad in [local("node 1", "phalanx"), local("", "phalanx"), local("node-1", &"x".repeat(200))] {
            assert!(matches!(new(bad), Err(EndpointError::Local(_))));
        }
        let rows = Local { row_bytes: 1 << 40, ..local("node-1", "phalanx") };
        assert!(matches!(new(rows), Err(EndpointError::Limits(LimitsError::Row { .. }))));
    }
}
