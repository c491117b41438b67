//! Keeps a node's certificate from running out, and answers nodes that ask for one.
//!
//! [`Schedule`] decides when to ask, and is pure: the time of day is passed in. [`keep`] is the node's shell around
//! it, [`answer`] the coordinator's.
//!
//! Certificates are short-lived because none is ever revoked, so a node asks when two thirds of its life are over
//! and goes on asking through the last third, at growing distances that never exceed a tenth of what is left. An
//! open link outlives the certificate that it was opened with; only new ones need the new certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::Peer;
use crate::carrier::Vouched;
use crate::link::RenewRefused;
use crate::security::{Authority, CertificateFault, Credentials, SecurityError, Tls, Utc};

/// After the first failure; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// At most so long from one try to the next.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// At least so long from one try to the next, however little is left. A new certificate that is due at once, because
/// the authority itself ends, is one of these too.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Parts of what is left of a certificate's life that may pass from one try to the next.
const TRIES_LEFT: u32 = 10;
/// The clock of a machine may be set while nothing is due; this is how late that is seen at most.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Most time for an answer. A whole cluster may be asking, and each is written to the authority's disk.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What a node is to do about its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask again after so long.
    Wait(Duration),
    /// Get a new one now.
    Ask,
}

/// When a certificate is to be renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    due: Utc,
    not_after: Utc,
    failures: u32,
}

impl Schedule {
    /// For a certificate that is in use.
    pub fn new(credentials: &Credentials) -> Self {
        Self { due: credentials.renew_at(), not_after: credentials.facts().not_after, failures: 0 }
    }

    /// What to do at `now`.
    pub fn poll_next(&self, now: Utc) -> Next {
        // No pause after a failure is longer: the clock was ahead when it failed, and has been set back since. What was put
        // off by that clock may be months away, and the certificate ends before.
        let was_ahead = self.failures > 0 && self.due.since(now) > RETRY_MAX;
        match now >= self.due || was_ahead {
            true => Next::Ask,
            false => Next::Wait(self.due.since(now).min(WAIT_MAX)),
        }
    }

    /// It came to nothing.
    pub fn handle_failed(&mut self, now: Utc) {
        let doubled = RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
        let left = self.not_after.since(now) / TRIES_LEFT;
        // Where nothing is left there is no hurry any more: only a new enrolment helps, or a clock that is set.
        let bound = if left.is_zero() { RETRY_MAX } else { left };
        self.due = now.plus(doubled.min(RETRY_MAX).min(bound).max(RETRY_MIN));
        self.failures += 1;
    }

    /// There is another link: what failed over the last may succeed over this one.
    pub fn handle_link(&mut self, now: Utc) {
        if self.failures > 0 {
            self.due = self.due.min(now.plus(RETRY_MIN));
        }
    }

    /// A new one is in use.
    pub fn handle_renewed(&mut self, credentials: &Credentials, now: Utc) {
        *self = Self::new(credentials);
        self.due = self.due.max(now.plus(RETRY_MIN));
    }

    /// Tries in a row that came to nothing.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Why a node has no new certificate. The one in use goes on being used.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The link did not take the question.
    #[error("cannot ask for a new certificate: {0}")]
    Link(#[from] RenewRefused),
    /// The coordinator says no.
    #[error("the coordinator issues no new certificate: {0}")]
    Refused(String),
    /// It says nothing.
    #[error(
        "the coordinator did not answer within {0:?}; see whether it can write to its authority's folder"
    )]
    Slow(Duration),
    /// What came is not what was asked for.
    #[error("the certificate that came cannot be used: {0}")]
    Issued(#[from] CertificateFault),
    /// Keys or files.
    #[error(transparent)]
    Security(#[from] SecurityError),
}

/// Asks over a link for what takes the place of these credentials. Nothing is written and nothing swapped.
pub async fn ask(credentials: &Credentials, peer: &Peer) -> Result<Credentials, RenewError> {
    let request = credentials.request()?;
    let answered = tokio::time::timeout(ANSWER_MAX, peer.renew(request)).await;
    let chain = answered.map_err(|_| RenewError::Slow(ANSWER_MAX))??.map_err(RenewError::Refused)?;
    Ok(credentials.renewed(&chain)?)
}

/// Keeps the certificate of `tls` fresh, and the copy in `folder` where there is one. `links` is the link over which
/// to ask, as it comes and goes; this ends when nobody can send another. `clock` says what time of day it is.
///
/// It holds no link open: drop the one that is in `links` and it is closed.
pub async fn keep(
    tls: Tls,
    folder: Option<PathBuf>,
    mut links: watch::Receiver<Option<Peer>>,
    clock: impl Fn() -> Utc,
) {
    let mut schedule = Schedule::new(&tls.credentials());
    let mut is_unsaved = false;
    loop {
        if let Next::Wait(time) = schedule.poll_next(clock()) {
            match tokio::time::timeout(time, links.changed()).await {
                Ok(Ok(())) => schedule.handle_link(clock()),
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            continue;
        }
        let done = if is_unsaved {
            save(&tls, folder.as_deref()).await
        } else {
            let peer = links.borrow_and_update().clone().filter(|peer| peer.ended().is_none());
            let Some(peer) = peer else {
                if links.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match renew(&tls, &peer).await {
                Ok(()) => {
                    is_unsaved = true;
                    save(&tls, folder.as_deref()).await
                }
                Err(why) => Err(why),
            }
        };
        match done {
            Ok(()) => {
                is_unsaved = false;
                let credentials = tls.credentials();
                schedule.handle_renewed(&credentials, clock());
                tracing::info!(peer = %credentials.peer(), not_after = %credentials.facts().not_after, "renewed");
            }
            Err(why) => {
                let not_after = tls.credentials().facts().not_after;
                schedule.handle_failed(clock());
                tracing::warn!(%why, %not_after, failures = schedule.failures(), "not renewed, tried again");
            }
        }
    }
}

/// From here on new connections show the new certificate, whatever the disk says.
async fn renew(tls: &Tls, peer: &Peer) -> Result<(), RenewError> {
    let renewed = ask(&tls.credentials(), peer).await?;
    Ok(tls.swap(renewed)?)
}

async fn save(tls: &Tls, folder: Option<&Path>) -> Result<(), RenewError> {
    let Some(folder) = folder.map(Path::to_path_buf) else { return Ok(()) };
    let credentials = tls.credentials();
    // It is flushed to the disk; nobody else of this thread is to wait for that.
    let saved = tokio::task::spawn_blocking(move || credentials.save_renewed(&folder)).await;
    Ok(saved.expect("writing a file does not panic, and is not given up")?)
}

/// The coordinator's answer to [`Notice::RenewalAsked`](super::Notice::RenewalAsked): a certificate for the name that
/// the certificate of that very link has. What the peer calls itself is not asked.
pub async fn answer(authority: &Authority, peer: &Peer, request: Vec<u8>) {
    let answer = match peer.vouched() {
        Vouched::Certificate(name) => authority.renewal(name.clone(), request).await,
        Vouched::User(_) | Vouched::Nobody => {
            Err("this link has no certificate, so nothing proves its name; ask over one with TLS".to_owned())
        }
    };
    match &answer {
        Ok(_) => tracing::info!(peer = ?peer, "certificate renewed"),
        Err(why) => tracing::warn!(peer = ?peer, %why, "certificate not renewed"),
    }
    peer.answer_renewal(answer);
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Utc = Utc(1_000_000_000);

    /// Of one that lives a day and began an hour ago.
    fn schedule() -> Schedule {
        Schedule { due: Utc(START.0 + 57_600), not_after: Utc(START.0 + 86_400), failures: 0 }
    }

    /// What happens, and when, if nothing ever succeeds.
    #[test]
    fn it_asks_through_the_last_third_ever_less_often_and_then_more() {
        let (mut schedule, mut now) = (schedule(), START);
        let mut tries = Vec::new();
        while tries.len() < 14 {
            match schedule.poll_next(now) {
                Next::Wait(time) => now = now.plus(time),
                Next::Ask => {
                    tries.push(now.0 - START.0);
                    schedule.handle_failed(now);
                }
            }
        }
        let distances: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(tries[0], 57_600);
        assert_eq!(distances, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600, 600]);
        // The last hour: a tenth of what is left.
        let late = Utc(schedule.not_after.0 - 100);
        schedule.handle_failed(late);
        assert_eq!(schedule.poll_next(late), Next::Wait(Duration::from_secs(10)));
        let last = Utc(schedule.not_after.0 - 2);
        schedule.handle_failed(last);
        assert_eq!(schedule.poll_next(last), Next::Wait(RETRY_MIN));
        schedule.handle_failed(schedule.not_after);
        assert_eq!(schedule.poll_next(schedule.not_after), Next::Wait(RETRY_MAX));
        schedule.handle_link(schedule.not_after);
        assert_eq!(
            schedule.poll_next(schedule.not_after),
            Next::Wait(RETRY_MIN),
            "another link, another chance"
        );
    }

    #[test]
    fn a_clock_that_is_set_is_seen_within_the_hour() {
        let mut schedule = schedule();
        schedule.handle_link(START);
        assert_eq!(
            schedule.poll_next(START),
            Next::Wait(WAIT_MAX),
            "nothing is due, whatever links there are"
        );
        assert_eq!(schedule.poll_next(Utc(schedule.due.0 - 1)), Next::Wait(Duration::from_secs(1)));
        assert_eq!(schedule.poll_next(schedule.due), Next::Ask);
    }

    /// A clock that was months ahead for a moment, in which nobody renewed anything, puts nothing off for months.
    #[test]
    fn a_clock_that_was_ahead_puts_nothing_off() {
        let mut schedule = schedule();
        let ahead = START.plus(Duration::from_secs(100 * 86_400));
        assert_eq!(schedule.poll_next(ahead), Next::Ask);
        schedule.handle_failed(ahead);
        assert_eq!(schedule.poll_next(ahead), Next::Wait(RETRY_FIRST));
        assert_eq!(schedule.poll_next(START), Next::Ask, "it was due long before that");
        schedule.handle_failed(START);
        assert_eq!(schedule.poll_next(START), Next::Wait(2 * RETRY_FIRST));
    }
}
