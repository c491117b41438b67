//! Who is in: nodes by their names, the links over which they came, and the term under which they are admitted.
//!
//! Pure: no clock, no socket. A closed link is death at once; silence makes a node late, which is a hint and nothing
//! more. Whoever drives it calls a `handle_*`, carries out what [`Membership::poll_action`] yields until it yields
//! nothing, and sets its timer to [`Membership::poll_timeout`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use transport::carrier::Vouched;
use transport::wire::cluster::Join;

use super::admission::{check, words};
use super::cluster::{Cluster, NodeOffer};
use super::drain::Drained;
use super::term::Terms;
use crate::data::ids::LinkId;
use crate::placement::NodeId;

/// How nodes are admitted.
#[derive(Debug, Clone)]
pub struct MembershipSettings {
    /// How long terms are gathered before the first is taken, and nobody is admitted.
    pub join_window: Duration,
    /// Names that are remembered. More nodes than that are refused.
    pub nodes_max: usize,
    /// Digest of the `config.json` of this coordinator's checkpoint, which a node's own copy must have too.
    pub checkpoint: Option<[u8; 32]>,
    /// How often a name may be taken over by another process within `takeovers_window`: two processes of one name
    /// would do so for ever.
    pub takeovers_max: usize,
    /// See `takeovers_max`.
    pub takeovers_window: Duration,
}

impl Default for MembershipSettings {
    fn default() -> Self {
        Self {
            join_window: Duration::from_secs(1),
            nodes_max: 4096,
            checkpoint: None,
            takeovers_max: 5,
            takeovers_window: Duration::from_secs(10),
        }
    }
}

/// A node that wants in.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Over which link.
    pub link: LinkId,
    /// Its name, as the link's handshake has it.
    pub name: String,
    /// Who says that this is its name.
    pub vouched: Vouched,
    /// A number of its process's life.
    pub incarnation: u64,
    /// What it offers.
    pub join: Join,
}

/// What a node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for a term.
    Joining,
    /// It is in.
    Joined,
    /// It is in, and was not heard of for longer than its rhythm.
    Late,
    /// It is in, and wants to go.
    Leaving,
    /// Its link has ended.
    Gone,
}

/// A node, known by its name.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// Its link, unless it is gone.
    pub link: Option<LinkId>,
    /// What it is.
    pub state: State,
    /// What it offers, or offered.
    pub offer: NodeOffer,
    vouched: Vouched,
    incarnation: u64,
    /// It has said that it wants to go.
    wants_to_go: bool,
    /// The term that it announced.
    announced: u64,
    takeovers: VecDeque<Instant>,
    gone_at: Option<Instant>,
}

impl Member {
    /// Whether it is in.
    pub fn is_in(&self) -> bool {
        is_in(self.state)
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer `Joined`.
    Admit {
        /// Over which link.
        link: LinkId,
        /// The node's number.
        node: NodeId,
        /// Our term.
        term: u64,
    },
    /// Answer `NotJoined`, and close the link.
    Refuse {
        /// Which link.
        link: LinkId,
        /// In words.
        why: String,
    },
    /// Close the link of an earlier session of this node: it has ended for everybody who knew of it.
    CloseOlder {
        /// Which link.
        link: LinkId,
        /// Whose.
        node: NodeId,
    },
    /// Write this term to the data directory, with fsync, then call [`Membership::handle_stored`].
    StoreTerm(u64),
    /// Publish under this term from now on.
    TakeTerm(u64),
    /// [`Membership::cluster`] has changed.
    Changed,
}

/// Who is in.
#[derive(Debug)]
pub struct Membership {
    settings: MembershipSettings,
    terms: Terms,
    members: BTreeMap<NodeId, Member>,
    by_name: BTreeMap<String, NodeId>,
    by_link: BTreeMap<LinkId, NodeId>,
    drained: Drained,
    next: u32,
    actions: VecDeque<Action>,
}

impl Membership {
    /// `stored`: the term in the data directory, 0 if there is none.
    pub fn new(settings: MembershipSettings, stored: u64, now: Instant) -> Self {
        let terms = Terms::new(stored, settings.join_window, now);
        let (members, by_name, by_link) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let drained = Drained::default();
        Self { settings, terms, members, by_name, by_link, drained, next: 0, actions: VecDeque::new() }
    }

    /// The same where these nodes are drained, as the data directory has it.
    pub fn with_drained(self, drained: Drained) -> Self {
        Self { drained, ..self }
    }

    /// A node asks to be let in.
    pub fn handle_join(&mut self, joining: Joining, now: Instant) {
        if let Err(why) = self.admit(&joining, now) {
            self.actions.push_back(Action::Refuse { link: joining.link, why });
            return;
        }
        self.terms.handle_announced(joining.join.term);
        self.go_on();
    }

    /// A link has ended, however.
    pub fn handle_link_ended(&mut self, link: LinkId, now: Instant) {
        let Some(member) = self.by_link.remove(&link).and_then(|node| self.members.get_mut(&node)) else {
            return;
        };
        let was_in = member.state != State::Joining;
        (member.link, member.state, member.gone_at) = (None, State::Gone, Some(now));
        if was_in {
            self.actions.push_back(Action::Changed);
        }
    }

    /// A node wants to go.
    pub fn handle_leaving(&mut self, link: LinkId) {
        let Some(member) = self.member_of(link) else { return };
        (member.wants_to_go, member.offer.is_leaving) = (true, true);
        if matches!(member.state, State::Joined | State::Late) {
            member.state = State::Leaving;
            self.actions.push_back(Action::Changed);
        }
    }

    /// A node's heartbeats have missed their rhythm.
    pub fn handle_late(&mut self, link: LinkId) {
        if let Some(member) = self.member_of(link).filter(|member| member.state == State::Joined) {
            member.state = State::Late;
        }
    }

    /// A node beats again.
    pub fn handle_awake(&mut self, link: LinkId) {
        if let Some(member) = self.member_of(link).filter(|member| member.state == State::Late) {
            member.state = State::Joined;
        }
    }

    /// A device is lost, until its node joins anew.
    pub fn handle_device_lost(&mut self, node: NodeId, device: u16) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let Some(memory) = member.offer.devices.get_mut(usize::from(device)) else { return };
        if std::mem::take(memory) > 0 && is_in(member.state) {
            self.actions.push_back(Action::Changed);
        }
    }

    /// These nodes are drained from now on, and no others. It is stored already.
    pub fn handle_drained(&mut self, drained: Drained) {
        self.drained = drained;
        let mut has_changed = false;
        for member in self.members.values_mut() {
            let is_leaving = member.wants_to_go || self.drained.has(&member.offer.name);
            let was_leaving = std::mem::replace(&mut member.offer.is_leaving, is_leaving);
            has_changed |= is_in(member.state) && was_leaving != is_leaving;
        }
        if has_changed {
            self.actions.push_back(Action::Changed);
        }
    }

    /// The join window may have ended.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.terms.handle_timeout(now);
        self.go_on();
    }

    /// A term is on disk.
    pub fn handle_stored(&mut self, term: u64) {
        if self.terms.handle_stored(term) {
            self.actions.push_back(Action::TakeTerm(term));
        }
        self.go_on();
    }

    /// When [`Membership::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.terms.poll_timeout()
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The term that may be used, when there is one.
    pub fn term(&self) -> Option<u64> {
        self.terms.term()
    }

    /// Every node that is known, those that are gone too.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The node of a link.
    pub fn node(&self, link: LinkId) -> Option<NodeId> {
        self.by_link.get(&link).copied()
    }

    /// A node by its number.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// A node's name, also after it has gone; its number, where it was forgotten.
    pub fn name(&self, node: NodeId) -> String {
        self.member(node).map_or_else(|| node.to_string(), |member| member.offer.name.clone())
    }

    /// A node by its name.
    pub fn named(&self, name: &str) -> Option<&Member> {
        self.members.get(self.by_name.get(name)?)
    }

    /// Which nodes are drained, also such as have not joined.
    pub fn drained(&self) -> &Drained {
        &self.drained
    }

    /// The nodes that are in and drained by force.
    pub fn forced(&self) -> BTreeSet<NodeId> {
        let members = self.members.values().filter(|member| is_in(member.state));
        let forced = members.filter(|member| self.drained.is_forced(&member.offer.name));
        forced.map(|member| member.node).collect()
    }

    /// How many nodes [`Membership::cluster`] has.
    pub fn nodes_in(&self) -> usize {
        self.members.values().filter(|member| is_in(member.state)).count()
    }

    /// What is there to place experts on.
    pub fn cluster(&self) -> Cluster {
        let members = self.members.values().filter(|member| is_in(member.state));
        Cluster::new(members.map(|member| member.offer.clone()).collect())
    }

    fn member_of(&mut self, link: LinkId) -> Option<&mut Member> {
        self.members.get_mut(self.by_link.get(&link)?)
    }

    /// Takes a node in, to be answered when there is a term for it.
    fn admit(&mut self, joining: &Joining, now: Instant) -> Result<(), String> {
        check(self.settings.checkpoint, &joining.join)?;
        if self.by_link.contains_key(&joining.link) {
            return Err("this link has joined already".into());
        }
        let node = match self.by_name.get(&joining.name).copied() {
            Some(node) => {
                self.take_over(node, joining, now)?;
                node
            }
            None => {
                self.make_room()?;
                self.next += 1;
                NodeId(self.next - 1)
            }
        };
        let labels = joining.join.labels.iter().cloned().collect();
        let devices = joining.join.devices.iter().map(|device| device.memory_bytes).collect();
        let is_leaving = self.drained.has(&joining.name);
        let offer = NodeOffer { id: node, name: joining.name.clone(), devices, labels, is_leaving };
        let earlier = self.members.remove(&node);
        let member = Member {
            node,
            link: Some(joining.link),
            state: State::Joining,
            offer,
            vouched: joining.vouched.clone(),
            incarnation: joining.incarnation,
            wants_to_go: false,
            announced: joining.join.term,
            takeovers: earlier.map(|earlier| earlier.takeovers).unwrap_or_default(),
            gone_at: None,
        };
        self.members.insert(node, member);
        self.by_name.insert(joining.name.clone(), node);
        self.by_link.insert(joining.link, node);
        Ok(())
    }

    /// Ends the session that a name has, if it may be ended by this one.
    fn take_over(&mut self, node: NodeId, joining: &Joining, now: Instant) -> Result<(), String> {
        let settings = &self.settings;
        let member = self.members.get_mut(&node).expect("every name has its member");
        let Some(older) = member.link else { return Ok(()) };
        let name = &joining.name;
        if member.vouched != joining.vouched {
            return Err(format!(
                "the name {name} is held by a node that is known by {}, and this one by {}; give it another name, \
                 or stop the other",
                words(&member.vouched),
                words(&joining.vouched)
            ));
        }
        if member.incarnation != joining.incarnation {
            let window = settings.takeovers_window;
            member.takeovers.retain(|at| now.saturating_duration_since(*at) < window);
            if member.takeovers.len() >= settings.takeovers_max {
                return Err(format!(
                    "the name {name} was taken over {} times within {window:?}: two processes seem to have it; give \
                     one of them another name",
                    settings.takeovers_max
                ));
            }
            member.takeovers.push_back(now);
        }
        self.by_link.remove(&older);
        self.actions.push_back(Action::CloseOlder { link: older, node });
        if is_in(member.state) {
            self.actions.push_back(Action::Changed);
        }
        Ok(())
    }

    /// Room for another name: the one that is gone longest is forgotten.
    fn make_room(&mut self) -> Result<(), String> {
        if self.members.len() < self.settings.nodes_max {
            return Ok(());
        }
        let gone = self.members.values().filter(|member| member.gone_at.is_some());
        let Some(longest) = gone.min_by_key(|member| (member.gone_at, member.node)).map(|member| member.node)
        else {
            return Err(format!("the cluster has {} nodes and takes no more", self.settings.nodes_max));
        };
        let forgotten = self.members.remove(&longest).expect("it was just found");
        self.by_name.remove(&forgotten.offer.name);
        Ok(())
    }

    /// Has terms stored, and admits whoever waited for one.
    fn go_on(&mut self) {
        if let Some(term) = self.terms.poll_store() {
            self.actions.push_back(Action::StoreTerm(term));
        }
        let Some(term) = self.terms.term() else { return };
        let mut changed = false;
        for member in self.members.values_mut() {
            // Who has seen a higher term would not obey this one.
            if member.state == State::Joining && member.announced <= term {
                let link = member.link.expect("who waits has a link");
                member.state = if member.wants_to_go { State::Leaving } else { State::Joined };
                self.actions.push_back(Action::Admit { link, node: member.node, term });
                changed = true;
            }
        }
        if changed {
            self.actions.push_back(Action::Changed);
        }
    }
}

fn is_in(state: State) -> bool {
    matches!(state, State::Joined | State::Late | State::Leaving)
}
