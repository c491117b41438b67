//! What must hold when nothing goes wrong any more and everybody has his answer.
//!
//! Pure. Everything that was taken is given back, and every expert is where it should be as often as it should be.

use coordinator::control::publisher::Standing;
use coordinator::placement::Placement;
use transport::Lane;
use transport::wire::cluster::ActorId;

use crate::control::{Control, node_of};
use crate::network::{EndId, limits};
use crate::watch::violation;
use crate::world::World;

impl World {
    /// Whether nothing is under way any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.coordinators.iter().flatten().all(|of| {
            // Full devices that would have to exchange what they hold stay as they are, which is said.
            let standing = of.control.publisher.standing();
            let is_blocked = Standing { blocked: true, waiting: standing.waiting, ..Standing::default() };
            (standing == Standing::default() || standing == is_blocked)
                && of.data.is_quiet()
                && of.data.exchange.dispatches_open() == 0
        }) && self.nodes.iter().flatten().all(|node| node.floor.groups() == 0)
    }

    /// Nothing is left over, and nothing is missing.
    pub(crate) fn check_quiet(&self) {
        for of in self.coordinators.iter().flatten() {
            let data = &of.data;
            let (scheduler, trunk, pages) = (&data.scheduler, &data.trunk, self.sky.case.pages as usize);
            expect("pages", "requests that run or wait", scheduler.running() + scheduler.waiting(), 0);
            expect("pages", "pages that the scheduler has free", scheduler.pages_free() as usize, pages);
            expect("pages", "pages free or kept", trunk.pages_free() + trunk.blocks(), pages);
            expect("memory", "rows free", data.flow.rows_free(), self.sky.case.rows_max as usize);
            expect("memory", "rows that have landed", data.landed(), 0);
            for link in data.exchange.links() {
                let used = link.out_used + link.back_used + u64::from(link.dispatches);
                expect("credits", "room taken on a link", used as usize, 0);
            }
        }
        self.check_links();
        self.check_placement();
        self.check_drained();
    }

    /// Nodes that are drained hold nothing, and who they are is known as operators were told.
    fn check_drained(&self) {
        for of in self.coordinators.iter().flatten() {
            self.sky.operators.check(of.at, of.control.membership.drained());
        }
        for name in self.emptied() {
            let node = self.nodes[node_of(name)].as_ref();
            if let Some(actor) = node.and_then(|node| node.floor.standing().next()) {
                violation("drained", format!("{name} is drained and holds {actor:?}"));
            }
        }
    }

    /// Nodes that are drained where the others have room for everything, and could get there. Where two coordinators have the same
    /// term nodes hold what both say, also when one of them is no more.
    pub(crate) fn emptied(&self) -> impl Iterator<Item = &str> {
        let controls = self.coordinators.iter().flatten().map(|of| &of.control);
        let has_room = |control: &&Control| {
            let is_refused = control.placer.refused().is_some() || control.publisher.standing().blocked;
            self.sky.case.coordinators == 1 && !is_refused
        };
        controls.filter(has_room).flat_map(|control| control.membership.drained().names())
    }

    /// No link has more under way than was agreed.
    pub(crate) fn check_rooms(&self) {
        let limits = limits(self.sky.case.window_rows);
        let window = limits.window_bytes.data;
        for link in self.coordinators.iter().flatten().flat_map(|of| of.data.exchange.links()) {
            let is_within = link.out_used <= window / 4 * 3
                && link.back_used <= window / 2
                && link.dispatches <= limits.in_flight_max;
            if !is_within {
                violation(
                    "memory",
                    format!("more is under way than the window of {window} bytes has: {link:?}"),
                );
            }
        }
    }

    fn check_links(&self) {
        for (pipe, ends) in self.sky.network.ends.iter().enumerate() {
            if ends.iter().any(|end| end.is_over) {
                continue;
            }
            for (side, end) in ends.iter().enumerate() {
                let link = &end.link;
                let flying = link.in_flight() + link.in_flight_theirs();
                expect("credits", "dispatches in flight on a link", flying, 0);
                for lane in [Lane::Data, Lane::Weights] {
                    let held = self.sky.network.held(EndId { pipe, side }, lane) as usize;
                    expect("credits", &format!("bytes of frames that are held on a {lane} lane"), held, 0);
                }
            }
        }
    }

    fn check_placement(&self) {
        for of in self.coordinators.iter().flatten() {
            // Where the cluster is too small, or too full to get there, it says so.
            if of.control.placer.refused().is_some() || of.control.publisher.standing().blocked {
                continue;
            }
            let published = of.control.publisher.published();
            for (layer, demand) in &self.sky.case.demand.layers {
                for expert in 0..demand.experts {
                    let replicas = published.replicas(*layer, expert).len();
                    let wanted = usize::from(self.sky.case.constraints.replicas_min);
                    if replicas < wanted {
                        let what =
                            format!("expert {expert} of layer {layer} has {replicas} of {wanted} replicas");
                        violation("heals", what);
                    }
                }
            }
            for (actor, seat) in published.actors() {
                let name = of.control.membership.name(seat.node);
                if !self.stands(&name, actor) {
                    violation("heals", format!("{actor:?} does not stand on {name}, where it is published"));
                }
            }
        }
    }

    fn stands(&self, name: &str, actor: ActorId) -> bool {
        let node = self.nodes[node_of(name)].as_ref();
        node.is_some_and(|node| node.floor.standing().any(|standing| standing == actor))
    }

    /// Who has no answer, and what its coordinator says of that.
    pub(crate) fn who_waits(&self) -> String {
        let waits = self.clients.iter().enumerate().filter(|(_, client)| client.outcome.is_none());
        let waits: Vec<_> = waits.map(|(client, of)| (client, of.asked)).collect();
        format!("clients {waits:?} have no answer: {}", self.what_is_missing())
    }

    /// How everything stands.
    pub(crate) fn what_is_missing(&self) -> String {
        let of = |of: &crate::coordinator::Coordinator| {
            let (data, control) = (&of.data, &of.control);
            let links: Vec<_> =
                data.exchange.links().map(|link| (link.link, link.node, link.dispatches)).collect();
            let held: Vec<_> = data.scheduler.held_requests().collect();
            let wanted = control.publisher.wanted().map_or(0, |wanted: &Placement| wanted.actors().count());
            format!(
                "coordinator {} of life {}: {} run, {held:?} wait, {} dispatches out, {} rows landed, rows free {}, links {links:?}, term {:?}, \
                 {:?}, {} of {wanted} published, refused {:?}, superseded {}, paused {:?}",
                of.at,
                of.life,
                data.scheduler.running(),
                data.exchange.dispatches_open(),
                data.landed(),
                data.flow.rows_free(),
                control.membership.term(),
                control.publisher.standing(),
                control.publisher.published().actors().count(),
                control.placer.refused(),
                control.is_superseded,
                data.exchange
                    .actors()
                    .filter(|actor| actor.is_paused)
                    .map(|actor| (actor.actor, actor.seat.node, actor.outstanding))
                    .collect::<Vec<_>>(),
            )
        };
        let coordinators: Vec<String> = self.coordinators.iter().flatten().map(of).collect();
        let groups: Vec<usize> = self.nodes.iter().flatten().map(|node| node.floor.groups()).collect();
        let pipes = 0..self.sky.network.ends.len();
        let open = pipes.filter(|pipe| self.sky.network.ends[*pipe].iter().all(|end| !end.is_over));
        let links: Vec<String> = open.map(|pipe| self.sky.network.words(pipe)).collect();
        format!("{}; groups at nodes {groups:?}; links: {}", coordinators.join("; "), links.join("; "))
    }
}

fn expect(kind: &'static str, what: &str, found: usize, wanted: usize) {
    if found != wanted {
        violation(kind, format!("at the end there are {found} {what}, {wanted} were expected"));
    }
}
