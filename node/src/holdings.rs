//! What a node is to hold, what it holds, and what lies between.
//!
//! Pure. Orders are whole and declarative: a coordinator says all that the node is to hold, and the node makes it so:
//! it loads what is missing, removes what is not named any more, and says when that is done. There may be several
//! coordinators; the orders of the highest term count, all of them together. One of a lower term is answered with the
//! epoch that is obeyed instead, nothing held, and the word *stale*. An order outlives its link, for its coordinator
//! may come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use transport::wire::cluster::{ActorId, Assignment, Epoch, Fallen, Hold, Holding, Progress, ToCoordinator};

/// How the answer to an order of a term that is over begins.
pub const STALE: &str = "stale";

/// How often progress is said while an order is carried out: of a thousand actors not for each.
const PROGRESS_STEPS: usize = 64;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Load the weights of an actor. Its end is `handle_loaded`, with the same ticket.
    Load {
        /// Names the errand.
        ticket: u64,
        /// What for.
        assignment: Assignment,
    },
    /// The errand is not wanted any more; `handle_loaded` comes all the same, and until then its room is taken.
    Cancel {
        /// Which.
        ticket: u64,
    },
    /// Stop an actor and forget its weights. What is loaded after it may need its room.
    Remove(Assignment),
    /// Say this to a coordinator, if it is linked.
    Say {
        /// Its name.
        to: String,
        /// What.
        what: ToCoordinator,
    },
}

/// Why an errand came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadFailed {
    /// The device had no room for it; in words.
    #[error("{0}")]
    NoRoom(String),
    /// Whatever else; in words.
    #[error("{0}")]
    Because(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Loading {
        ticket: u64,
    },
    /// For the room of errands that were cancelled and are not over.
    Waiting,
    Standing {
        bytes: u64,
    },
    Failed {
        why: String,
    },
}

#[derive(Debug)]
struct Held {
    assignment: Assignment,
    state: State,
}

#[derive(Debug)]
struct Order {
    epoch: Epoch,
    actors: BTreeMap<ActorId, Assignment>,
    /// It has been answered with `Holding`.
    is_answered: bool,
    /// Actors that stood or had failed when progress was last said.
    progress: Option<usize>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Holdings {
    term: u64,
    /// The newest of each coordinator, all of the same term.
    orders: BTreeMap<String, Order>,
    held: BTreeMap<ActorId, Held>,
    linked: BTreeSet<String>,
    tickets: u64,
    /// Errands that were cancelled and are not over, and on which devices.
    cancelled: BTreeMap<u64, u16>,
    actions: VecDeque<Action>,
}

impl Holdings {
    /// The highest term seen.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The newest epoch that is obeyed.
    pub fn epoch(&self) -> Epoch {
        let numbers = self.orders.values().map(|order| order.epoch.number);
        Epoch { term: self.term, number: numbers.max().unwrap_or(0) }
    }

    /// Actors that stand.
    pub fn standing(&self) -> Vec<ActorId> {
        self.held().into_iter().map(|assignment| assignment.actor).collect()
    }

    /// What stands and where, for a coordinator that is joined.
    pub fn held(&self) -> Vec<Assignment> {
        let stands = |held: &&Held| matches!(held.state, State::Standing { .. });
        self.held.values().filter(stands).map(|held| held.assignment).collect()
    }

    /// On which device an actor is, or is to be.
    pub fn assignment(&self, actor: ActorId) -> Option<Assignment> {
        self.held.get(&actor).map(|held| held.assignment)
    }

    /// A coordinator has joined this node to its cluster.
    pub fn handle_linked(&mut self, coordinator: &str) {
        self.linked.insert(coordinator.to_owned());
    }

    /// Its link ended.
    pub fn handle_unlinked(&mut self, coordinator: &str) {
        self.linked.remove(coordinator);
    }

    /// An order.
    pub fn handle_hold(&mut self, from: &str, hold: Hold) {
        let newest = self.orders.get(from).filter(|order| order.epoch.term == hold.epoch.term);
        let is_old = newest.is_some_and(|newest| hold.epoch.number < newest.epoch.number);
        if hold.epoch.term < self.term || is_old {
            let epoch = self.epoch();
            let why = format!("{STALE}: this node obeys term {}, number {}", epoch.term, epoch.number);
            let failed = hold.actors.iter().map(|assignment| (assignment.actor, why.clone())).collect();
            self.say(from, ToCoordinator::Holding(Holding { epoch, failed }));
            return;
        }
        if hold.epoch.term > self.term {
            self.term = hold.epoch.term;
            self.orders.clear();
        }
        let actors = hold.actors.into_iter().map(|assignment| (assignment.actor, assignment)).collect();
        self.orders
            .insert(from.to_owned(), Order { epoch: hold.epoch, actors, is_answered: false, progress: None });
        self.reconcile();
        self.answer();
    }

    /// An errand has ended: with so many bytes in memory, or not. Whether the weights are wanted: if so, the actor is to be
    /// started now; if not, their room is to be given back before the next action is polled.
    pub fn handle_loaded(&mut self, ticket: u64, result: Result<u64, LoadFailed>) -> Option<Assignment> {
        if let Some(device) = self.cancelled.remove(&ticket) {
            self.load_waiting(device);
            return None;
        }
        let mut of = self.held.values_mut().filter(|held| held.state == State::Loading { ticket });
        let held = of.next()?;
        let assignment = held.assignment;
        let stands = result.is_ok();
        // A coordinator orders what fits beside what stays, so room that is missing is about to come back.
        let is_coming = self.cancelled.values().any(|device| *device == assignment.device);
        held.state = match result {
            Ok(bytes) => State::Standing { bytes },
            Err(LoadFailed::NoRoom(_)) if is_coming => State::Waiting,
            Err(why) => State::Failed { why: why.to_string() },
        };
        self.answer();
        stands.then_some(assignment)
    }

    /// Room has come back on a device: what found none is tried again.
    fn load_waiting(&mut self, device: u16) {
        let Self { held, tickets, actions, .. } = self;
        let waits = |held: &&mut Held| held.state == State::Waiting && held.assignment.device == device;
        for held in held.values_mut().filter(waits) {
            *tickets += 1;
            held.state = State::Loading { ticket: *tickets };
            actions.push_back(Action::Load { ticket: *tickets, assignment: held.assignment });
        }
    }

    /// An actor fell. One that is lost stays so until no order names it any more.
    pub fn handle_fallen(&mut self, fallen: Fallen) {
        if fallen.is_lost
            && let Some(held) = self.held.get_mut(&fallen.actor)
        {
            held.state = State::Failed { why: format!("lost: {}", fallen.why) };
        }
        for to in self.linked.clone() {
            self.say(&to, ToCoordinator::Fallen(fallen.clone()));
        }
    }

    /// Another model: nothing that is held is of use, and no order is of this model.
    pub fn handle_other_model(&mut self) {
        self.orders.clear();
        self.reconcile();
    }

    /// What is to be done next. To be asked until there is nothing.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn say(&mut self, to: &str, what: ToCoordinator) {
        if self.linked.contains(to) {
            self.actions.push_back(Action::Say { to: to.to_owned(), what });
        }
    }

    /// Loads what is missing and removes what is not wanted.
    fn reconcile(&mut self) {
        let mut wanted: BTreeMap<ActorId, Assignment> = BTreeMap::new();
        for order in self.orders.values() {
            for (actor, assignment) in &order.actors {
                wanted.entry(*actor).or_insert(*assignment);
            }
        }
        let Self { held, actions, cancelled, .. } = self;
        held.retain(|actor, held| {
            let stays = wanted.get(actor).is_some_and(|wanted| is_same(wanted, &held.assignment));
            match held.state {
                _ if stays => {}
                State::Loading { ticket } => {
                    cancelled.insert(ticket, held.assignment.device);
                    actions.push_back(Action::Cancel { ticket });
                }
                State::Standing { .. } => actions.push_back(Action::Remove(held.assignment)),
                State::Failed { .. } | State::Waiting => {}
            }
            stays
        });
        for (actor, assignment) in wanted {
            held.entry(actor).or_insert_with(|| {
                self.tickets += 1;
                let ticket = self.tickets;
                actions.push_back(Action::Load { ticket, assignment });
                Held { assignment, state: State::Loading { ticket } }
            });
        }
    }

    /// Says how far the orders under way have come.
    fn answer(&mut self) {
        let mut answers = Vec::new();
        for (from, order) in self.orders.iter_mut().filter(|(_, order)| !order.is_answered) {
            let (mut failed, mut standing, mut loaded) = (Vec::new(), 0, 0);
            for actor in order.actors.keys() {
                match self.held.get(actor).map(|held| &held.state) {
                    Some(State::Standing { bytes }) => {
                        standing += 1;
                        loaded += bytes;
                    }
                    Some(State::Failed { why }) => failed.push((*actor, why.clone())),
                    _ => {}
                }
            }
            let (epoch, all, done) = (order.epoch, order.actors.len(), standing + failed.len());
            let what = if done == all {
                order.is_answered = true;
                ToCoordinator::Holding(Holding { epoch, failed })
            } else if order.progress.is_none_or(|said| done >= said + (all / PROGRESS_STEPS).max(1)) {
                order.progress = Some(done);
                let (actors, actors_all) = (count(standing), count(all));
                ToCoordinator::Progress(Progress { epoch, actors, actors_all, bytes: loaded })
            } else {
                continue;
            };
            answers.push((from.clone(), what));
        }
        answers.into_iter().for_each(|(to, what)| self.say(&to, what));
    }
}

fn count(actors: usize) -> u32 {
    u32::try_from(actors).expect("an order is bounded by its message")
}

/// Whether what is held for one serves the other. A digest that is not said is any.
fn is_same(wanted: &Assignment, held: &Assignment) -> bool {
    wanted.device == held.device && (wanted.digest.is_none() || wanted.digest == held.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(expert: u32) -> ActorId {
        ActorId { layer: 3, expert, replica: 0, shard: 0 }
    }

    fn seat(expert: u32, device: u16) -> Assignment {
        Assignment { actor: actor(expert), device, digest: None }
    }

    fn hold(term: u64, number: u64, experts: &[u32]) -> Hold {
        let actors = experts.iter().map(|expert| seat(*expert, 0)).collect();
        Hold { epoch: Epoch { term, number }, actors }
    }

    fn load(ticket: u64, expert: u32) -> Action {
        Action::Load { ticket, assignment: seat(expert, 0) }
    }

    fn progress(to: &str, term: u64, number: u64, actors: [u32; 2], bytes: u64) -> Action {
        let epoch = Epoch { term, number };
        let [actors, actors_all] = actors;
        let what = ToCoordinator::Progress(Progress { epoch, actors, actors_all, bytes });
        Action::Say { to: to.to_owned(), what }
    }

    fn holding(to: &str, term: u64, number: u64, failed: &[(u32, &str)]) -> Action {
        let failed = failed.iter().map(|(expert, why)| (actor(*expert), (*why).to_owned())).collect();
        let what = ToCoordinator::Holding(Holding { epoch: Epoch { term, number }, failed });
        Action::Say { to: to.to_owned(), what }
    }

    fn actions(holdings: &mut Holdings) -> Vec<Action> {
        std::iter::from_fn(|| holdings.poll_action()).collect()
    }

    fn linked(coordinators: &[&str]) -> Holdings {
        let mut holdings = Holdings::default();
        coordinators.iter().for_each(|coordinator| holdings.handle_linked(coordinator));
        holdings
    }

    #[test]
    fn an_order_is_loaded_and_answered_once() {
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[4, 5]));
        assert_eq!(actions(&mut holdings), [load(1, 4), load(2, 5), progress("a", 1, 1, [0, 2], 0)]);
        assert_eq!(holdings.handle_loaded(2, Ok(100)), Some(seat(5, 0)));
        assert_eq!(actions(&mut holdings), [progress("a", 1, 1, [1, 2], 100)]);
        assert_eq!(holdings.handle_loaded(1, Err(LoadFailed::Because("no such file".to_owned()))), None);
        assert_eq!(actions(&mut holdings), [holding("a", 1, 1, &[(4, "no such file")])]);
        assert_eq!(holdings.standing(), [actor(5)]);
        // The same again: all is there already, and what failed is not tried for ever.
        holdings.handle_hold("a", hold(1, 2, &[4, 5]));
        assert_eq!(actions(&mut holdings), [holding("a", 1, 2, &[(4, "no such file")])]);
    }

    /// An order replaces the one before it, whatever of that was done.
    #[test]
    fn what_is_not_named_any_more_goes() {
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[4, 5, 6]));
        holdings.handle_loaded(1, Ok(1));
        actions(&mut holdings);
        holdings.handle_hold("a", hold(1, 2, &[6, 7]));
        let expected = [
            Action::Remove(seat(4, 0)),
            Action::Cancel { ticket: 2 },
            load(4, 7),
            progress("a", 1, 2, [0, 2], 0),
        ];
        assert_eq!(actions(&mut holdings), expected);
        assert_eq!(holdings.handle_loaded(2, Ok(1)), None, "it came too late");
        assert_eq!(holdings.handle_loaded(4, Ok(1)), Some(seat(7, 0)));
        assert_eq!(holdings.handle_loaded(3, Ok(1)), Some(seat(6, 0)));
        assert_eq!(actions(&mut holdings).last(), Some(&holding("a", 1, 2, &[])));
    }

    /// Two that both believe to publish: the later life wins, and the other one learns of it.
    #[test]
    fn a_lower_term_is_stale() {
        let mut holdings = linked(&["a", "b"]);
        holdings.handle_hold("b", hold(7, 3, &[1]));
        holdings.handle_loaded(1, Ok(1));
        actions(&mut holdings);
        holdings.handle_hold("a", hold(6, 9, &[2]));
        let why = "stale: this node obeys term 7, number 3";
        assert_eq!(actions(&mut holdings), [holding("a", 7, 3, &[(2, why)])]);
        assert_eq!((holdings.term(), holdings.standing()), (7, vec![actor(1)]));
        holdings.handle_hold("b", hold(7, 2, &[2]));
        assert_eq!(actions(&mut holdings), [holding("b", 7, 3, &[(2, why)])]);
        holdings.handle_hold("a", hold(8, 1, &[1]));
        assert_eq!(actions(&mut holdings), [holding("a", 8, 1, &[])], "what stands goes on standing");
    }

    /// Several coordinators of one term: none takes away what another wants.
    #[test]
    fn orders_of_one_term_count_together() {
        let mut holdings = linked(&["a", "b"]);
        holdings.handle_hold("a", hold(1, 1, &[1, 2]));
        holdings.handle_hold("b", hold(1, 1, &[2, 3]));
        assert!((1..=3).all(|ticket| holdings.handle_loaded(ticket, Ok(1)).is_some()));
        actions(&mut holdings);
        holdings.handle_hold("a", hold(1, 2, &[]));
        assert_eq!(actions(&mut holdings), [Action::Remove(seat(1, 0)), holding("a", 1, 2, &[])]);
        assert_eq!(holdings.standing(), [actor(2), actor(3)]);
    }

    /// A link may break for a moment: nothing is dropped for that, and nothing is said to nobody.
    #[test]
    fn an_order_outlives_its_link() {
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[1]));
        actions(&mut holdings);
        holdings.handle_unlinked("a");
        assert_eq!(holdings.handle_loaded(1, Ok(1)), Some(seat(1, 0)));
        assert_eq!(actions(&mut holdings), []);
        holdings.handle_linked("a");
        holdings.handle_hold("a", hold(2, 1, &[1]));
        assert_eq!(actions(&mut holdings), [holding("a", 2, 1, &[])]);
    }

    #[test]
    fn a_lost_actor_is_not_held_until_it_was_given_up() {
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[1]));
        holdings.handle_loaded(1, Ok(1));
        actions(&mut holdings);
        let fallen = Fallen { actor: actor(1), why: "it broke".to_owned(), restarts: 5, is_lost: true };
        holdings.handle_fallen(fallen.clone());
        let said = Action::Say { to: "a".to_owned(), what: ToCoordinator::Fallen(fallen) };
        assert_eq!((actions(&mut holdings), holdings.standing()), (vec![said], vec![]));
        holdings.handle_hold("a", hold(1, 2, &[1]));
        assert_eq!(actions(&mut holdings), [holding("a", 1, 2, &[(1, "lost: it broke")])]);
        holdings.handle_hold("a", hold(1, 3, &[]));
        holdings.handle_hold("a", hold(1, 4, &[1]));
        let expected = [holding("a", 1, 3, &[]), load(2, 1), progress("a", 1, 4, [0, 1], 0)];
        assert_eq!(actions(&mut holdings), expected);
    }

    /// An actor moves when its device does, and is loaded anew where its tensors are others.
    #[test]
    fn another_device_or_digest_is_another_actor() {
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[1]));
        holdings.handle_loaded(1, Ok(1));
        actions(&mut holdings);
        let mut moved = hold(1, 2, &[1]);
        moved.actors[0].device = 3;
        moved.actors[0].digest = Some([7; 32]);
        holdings.handle_hold("a", moved.clone());
        let assignment = moved.actors[0];
        let found = actions(&mut holdings);
        assert_eq!(found[..2], [Action::Remove(seat(1, 0)), Action::Load { ticket: 2, assignment }]);
        holdings.handle_loaded(2, Ok(1));
        moved.epoch.number = 3;
        moved.actors[0].digest = None;
        holdings.handle_hold("a", moved.clone());
        assert_eq!(actions(&mut holdings).last(), Some(&holding("a", 1, 3, &[])), "any digest will do");
        moved.epoch.number = 4;
        moved.actors[0].digest = Some([8; 32]);
        holdings.handle_hold("a", moved);
        assert_eq!(actions(&mut holdings)[0], Action::Remove(assignment));
    }

    /// What is loaded in place of a cancelled errand needs its room, which is taken until that is over: it is tried again
    /// then, and has not failed.
    #[test]
    fn room_that_a_cancelled_errand_has_is_waited_for() {
        let no_room = || Err(LoadFailed::NoRoom("it takes 9 bytes, 0 are left".to_owned()));
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[1]));
        holdings.handle_hold("a", hold(1, 2, &[2]));
        let expected = [
            load(1, 1),
            progress("a", 1, 1, [0, 1], 0),
            Action::Cancel { ticket: 1 },
            load(2, 2),
            progress("a", 1, 2, [0, 1], 0),
        ];
        assert_eq!(actions(&mut holdings), expected);
        assert_eq!(holdings.handle_loaded(2, no_room()), None);
        assert_eq!(actions(&mut holdings), [], "nothing has failed");
        assert_eq!(holdings.handle_loaded(1, Ok(9)), None, "nobody wants it");
        assert_eq!(actions(&mut holdings), [load(3, 2)]);
        assert_eq!(holdings.handle_loaded(3, no_room()), None);
        let failed = holding("a", 1, 2, &[(2, "it takes 9 bytes, 0 are left")]);
        assert_eq!(actions(&mut holdings), [failed], "no room is coming any more");
    }

    /// What waits for room and is not wanted any more is forgotten, and other devices' room is not its own.
    #[test]
    fn what_waits_for_room_is_let_go() {
        let no_room = || Err(LoadFailed::NoRoom("none is left".to_owned()));
        let mut holdings = linked(&["a"]);
        holdings.handle_hold("a", hold(1, 1, &[1]));
        holdings.handle_hold("a", hold(1, 2, &[2]));
        holdings.handle_loaded(2, no_room());
        holdings.handle_hold("a", hold(1, 3, &[]));
        actions(&mut holdings);
        assert_eq!(holdings.handle_loaded(1, Ok(1)), None);
        assert_eq!(actions(&mut holdings), []);
        let mut other = hold(1, 5, &[4]);
        other.actors[0].device = 1;
        holdings.handle_hold("a", hold(1, 4, &[3]));
        holdings.handle_hold("a", other);
        actions(&mut holdings);
        assert_eq!(holdings.handle_loaded(4, no_room()), None);
        assert_eq!(actions(&mut holdings), [holding("a", 1, 5, &[(4, "none is left")])]);
    }
}
