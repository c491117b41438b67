//! The carrier, which dials, and the acceptor, which listens.
//!
//! Not pure: they own the sockets.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::doorbell::Doorbell;
use super::end::Life;
use super::lane::Ends;
use super::listen::{SocketFile, listen, path_of};
use super::setup::{Memory, SetupError, ShmSettings, ShmSettingsError, consider, propose};
use super::stream::control_lane;
use crate::buffer::Pool;
use crate::carrier::places::Places;
use crate::carrier::{Acceptor, Arrival, Carrier, ConnectError, Connection, Later, OtherLanes, Vouched};

/// Between two attempts where the host is short of something: descriptors, or room in a queue.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Dials listeners of this host.
#[derive(Debug)]
pub struct ShmCarrier {
    settings: ShmSettings,
    pool: Pool,
    doorbell: Doorbell,
}

impl ShmCarrier {
    /// A carrier whose connections receive into `pool` and wait at `doorbell`. All endpoints of a process may
    /// share one doorbell; then one thread can wait for all of them.
    pub fn new(settings: ShmSettings, pool: Pool, doorbell: &Doorbell) -> Result<Self, ShmSettingsError> {
        settings.check()?;
        Ok(Self { settings, pool, doorbell: doorbell.clone() })
    }

    async fn connect(&self, address: &str) -> Result<Connection, ConnectError> {
        let path = path_of(address)?;
        let unreachable = |why: String| ConnectError::Unreachable { address: address.into(), why };
        let connected = async {
            let stream = connect(path).await.map_err(|why| unreachable(reason(&why)))?;
            let (user, peer) = peer_of(&stream, address).map_err(|why| unreachable(why.to_string()))?;
            let proposed = if self.settings.allows(user) {
                propose(&stream, &self.settings, &self.doorbell).await
            } else {
                let own = rustix::process::geteuid().as_raw();
                Err(SetupError::User { user, own })
            };
            let memory = proposed.map_err(|why| failure(&peer, why))?;
            Ok(connection(stream, memory, true, user, (peer, address), &self.pool, &self.doorbell))
        };
        let waited = self.settings.setup_max;
        tokio::time::timeout(waited, connected).await.unwrap_or_else(|_| {
            Err(unreachable(format!("the listener did not set the connection up within {waited:?}")))
        })
    }
}

impl Carrier for ShmCarrier {
    fn dial<'a>(&'a self, address: &'a str) -> Later<'a, Result<Connection, ConnectError>> {
        Box::pin(self.connect(address))
    }
}

/// Connects; a listener whose queue is full is tried again until the caller has waited long enough.
async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(why) if why.kind() == ErrorKind::WouldBlock => tokio::time::sleep(RETRY_AFTER).await,
            other => return other,
        }
    }
}

fn reason(why: &std::io::Error) -> String {
    match why.kind() {
        ErrorKind::NotFound => "there is no such socket; start the listener, or check the path".into(),
        ErrorKind::ConnectionRefused => {
            "nobody listens there any more; start the listener again".into()
        }
        ErrorKind::PermissionDenied => {
            "this user may not use the socket; run both ends as one user, or name it in the listener's settings"
                .into()
        }
        _ => why.to_string(),
    }
}

/// The user at the other end, and words for who that is.
fn peer_of(stream: &UnixStream, address: &str) -> std::io::Result<(u32, String)> {
    let peer = stream.peer_cred()?;
    let process = peer.pid().map_or_else(|| "a process".into(), |pid| format!("process {pid}"));
    Ok((peer.uid(), format!("{process} of user {} at {address}", peer.uid())))
}

fn failure(peer: &str, why: SetupError) -> ConnectError {
    match why {
        SetupError::Host(_) | SetupError::Ended => {
            ConnectError::Unreachable { address: peer.into(), why: why.to_string() }
        }
        why => ConnectError::Security { address: peer.into(), why: why.to_string() },
    }
}

fn connection(
    stream: UnixStream,
    memory: Memory,
    is_dialler: bool,
    user: u32,
    (peer, address): (String, &str),
    pool: &Pool,
    doorbell: &Doorbell,
) -> Connection {
    let life = Life::new(peer);
    let control = control_lane(stream, &life, doorbell.bell(), pool);
    let ends = Ends { life, doorbell: doorbell.clone(), peer: memory.peer, pool: pool.clone() };
    let lane = |[out, back]: [Arc<_>; 2]| {
        if is_dialler { ends.lane(&out, &back) } else { ends.lane(&back, &out) }
    };
    let lanes = OtherLanes::Ready { data: lane(memory.data), weights: lane(memory.weights) };
    Connection { control, lanes, peer: Vouched::User(user), address: address.into() }
}

/// Where processes of this host arrive.
#[derive(Debug)]
pub struct ShmAcceptor {
    // Before the listener, and so dropped before it: see there.
    _file: SocketFile,
    listener: UnixListener,
    address: String,
    settings: Arc<ShmSettings>,
    pool: Pool,
    doorbell: Doorbell,
    setups: JoinSet<Result<Connection, ConnectError>>,
    places: Places,
    /// The host had nothing left for another connection; until then nobody is accepted.
    pause: Option<Pin<Box<Sleep>>>,
}

impl ShmAcceptor {
    /// Listens at `shm:/path/to/socket`, in a folder that is there. A file that a dead listener left is taken
    /// over. To be called within a runtime of tokio.
    pub fn bind(
        address: &str,
        settings: ShmSettings,
        pool: Pool,
        doorbell: &Doorbell,
    ) -> Result<Self, ConnectError> {
        let wrong = |why: String| ConnectError::Address { address: address.into(), carrier: "shm", why };
        settings.check().map_err(|why| wrong(why.to_string()))?;
        let (socket, file) = listen(address, !settings.users_allowed.is_empty())?;
        let listener = UnixListener::from_std(socket.into()).map_err(|why| wrong(why.to_string()))?;
        let path = address.strip_prefix("shm:").unwrap_or(address);
        Ok(Self {
            listener,
            places: Places::new(settings.setups_max),
            address: format!("shm:{path}"),
            settings: Arc::new(settings),
            pool,
            doorbell: doorbell.clone(),
            setups: JoinSet::new(),
            pause: None,
            _file: file,
        })
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<Arrival, ConnectError>> {
        loop {
            while let Poll::Ready(Some(done)) = self.setups.poll_join_next(context) {
                match done {
                    Ok(connection) => {
                        return Poll::Ready(Ok(Arrival { connection: connection?, lane_only: false }));
                    }
                    Err(why) => assert!(why.is_cancelled(), "setting up does not panic: {why}"),
                }
            }
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            // One that is done wakes this, and then there is room; or the oldest has had its time.
            std::task::ready!(self.places.poll_room(context));
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    let setup = set_up(
                        stream,
                        self.address.clone(),
                        Arc::clone(&self.settings),
                        self.pool.clone(),
                        self.doorbell.clone(),
                    );
                    self.places.take(Instant::now(), self.setups.spawn(setup));
                }
                Err(why) => {
                    self.pause = Some(Box::pin(tokio::time::sleep(RETRY_AFTER)));
                    let why = format!("cannot accept: {why}");
                    return Poll::Ready(Err(ConnectError::Unreachable {
                        address: self.address.clone(),
                        why,
                    }));
                }
            }
        }
    }
}

async fn set_up(
    stream: UnixStream,
    address: String,
    settings: Arc<ShmSettings>,
    pool: Pool,
    doorbell: Doorbell,
) -> Result<Connection, ConnectError> {
    let (user, peer) = peer_of(&stream, &address)
        .map_err(|why| ConnectError::Unreachable { address: address.clone(), why: why.to_string() })?;
    let waited = settings.setup_max;
    match tokio::time::timeout(waited, consider(&stream, user, &settings, &doorbell)).await {
        Ok(Ok(memory)) => Ok(connection(stream, memory, false, user, (peer, &address), &pool, &doorbell)),
        Ok(Err(why)) => Err(failure(&peer, why)),
        Err(_) => Err(ConnectError::Unreachable {
            address: peer,
            why: format!("it did not set the connection up within {waited:?}"),
        }),
    }
}

impl Acceptor for ShmAcceptor {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>> {
        Box::pin(poll_fn(|context| self.poll_accept(context)))
    }
}
