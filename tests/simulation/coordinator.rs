//! A coordinator's process: its two planes, and what they tell one another.
//!
//! As in the product the planes do not see one another: what they tell goes through two mailboxes, in order, and takes a
//! while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use coordinator::data::exchange::LinkRoom;
use coordinator::data::ids::LinkId;
use coordinator::placement::{NodeId, Placement};
use transport::link::Event as LinkEvent;
use transport::wire::cluster::Epoch;

use crate::bugs::Bug;
use crate::clock::{MS, US};
use crate::control::Control;
use crate::data::Data;
use crate::network::{Delivered, EndId};
use crate::operators::Wish;
use crate::world::{Event, Sky};

/// What happens inside a coordinator.
#[derive(Debug)]
pub(crate) enum CoordinatorEvent {
    /// The data plane looks.
    Pump,
    /// The rows of the trunk's batch have chosen.
    Chosen,
    /// The trunk is free.
    Done,
    /// The first of what the data plane was told.
    DataMail,
    /// The first of what the control plane was told.
    ControlMail,
    /// The control plane's timer.
    Watch,
    /// A term is on disk.
    Stored(u64),
}

/// What the control plane tells the data plane.
#[derive(Debug)]
pub(crate) enum ToData {
    Opened {
        link: LinkId,
        node: NodeId,
        end: EndId,
        room: LinkRoom,
    },
    Published(Arc<Placement>),
    Silent {
        link: LinkId,
        is_late: bool,
    },
    /// Its inlet says so.
    Over(EndId),
}

/// What the data plane sees.
#[derive(Debug)]
pub(crate) enum Observed {
    ClosedThrough(Epoch),
    Changed(Duration),
}

/// What the control plane is told.
#[derive(Debug)]
pub(crate) enum ToControl {
    Link(EndId, Box<LinkEvent>),
    Observed(Observed),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) at: usize,
    pub(crate) life: u32,
    pub(crate) control: Control,
    pub(crate) data: Data,
    to_data: VecDeque<ToData>,
    to_control: VecDeque<ToControl>,
}

impl Coordinator {
    /// A process that has begun, with the term that it finds on its disk.
    pub(crate) fn start(at: usize, life: u32, sky: &mut Sky) -> Self {
        let control = Control::new(at, life, sky);
        let (to_data, to_control) = (VecDeque::new(), VecDeque::new());
        let own = Self { at, life, control, data: Data::new(at, life, sky), to_data, to_control };
        own.later(MS, CoordinatorEvent::Watch, sky);
        own
    }

    fn later(&self, nanos: u64, what: CoordinatorEvent, sky: &mut Sky) {
        sky.clock.after(nanos, Event::Coordinator { coordinator: self.at, life: self.life, what });
    }

    pub(crate) fn handle(&mut self, what: CoordinatorEvent, sky: &mut Sky) {
        match what {
            CoordinatorEvent::Pump => self.data.pump(sky),
            CoordinatorEvent::Chosen => self.data.chosen(sky),
            CoordinatorEvent::Done => self.data.done(sky),
            CoordinatorEvent::DataMail => self.data_mail(sky),
            CoordinatorEvent::ControlMail => {
                match self.to_control.pop_front().expect("as many as were put there") {
                    ToControl::Link(end, event) => self.control.link_says(end, *event, sky),
                    ToControl::Observed(what) => self.control.saw(what, sky),
                }
            }
            CoordinatorEvent::Watch => self.control.watch_time(sky),
            CoordinatorEvent::Stored(term) => self.control.stored(term, sky),
        }
        self.forward(sky);
    }

    /// Experts are moved about.
    pub(crate) fn shuffle(&mut self, sky: &mut Sky) {
        self.control.shuffle(sky);
        self.forward(sky);
    }

    /// An operator wants something of a node.
    pub(crate) fn ask(&mut self, name: &str, wish: Wish, sky: &mut Sky) {
        self.control.ask(name, wish, sky);
        self.forward(sky);
    }

    fn data_mail(&mut self, sky: &mut Sky) {
        match self.to_data.pop_front().expect("as many as were put there") {
            ToData::Opened { link, node, end, room } => self.data.opened(link, node, end, room, sky),
            ToData::Published(placement) => self.data.placed(placement, sky),
            ToData::Silent { link, is_late } => self.data.silent(link, is_late, sky),
            ToData::Over(end) => self.data.link_over(end, sky),
        }
    }

    /// What each plane says is put into the other's mailbox.
    fn forward(&mut self, sky: &mut Sky) {
        for what in std::mem::take(&mut self.data.observed) {
            self.tell_control(ToControl::Observed(what), sky);
        }
        for what in std::mem::take(&mut self.control.to_data) {
            self.tell_data(what, sky);
        }
    }

    fn tell_data(&mut self, what: ToData, sky: &mut Sky) {
        self.to_data.push_back(what);
        let after = sky.random.below(80 * US);
        self.later(after, CoordinatorEvent::DataMail, sky);
    }

    fn tell_control(&mut self, what: ToControl, sky: &mut Sky) {
        self.to_control.push_back(what);
        let after = sky.random.below(80 * US);
        self.later(after, CoordinatorEvent::ControlMail, sky);
    }

    /// A link says something. Each plane hears of an end by itself.
    pub(crate) fn link_says(&mut self, end: EndId, event: LinkEvent, sky: &mut Sky) {
        if matches!(event, LinkEvent::Closed(_)) && !sky.has_bug(Bug::MissesEnds) {
            self.tell_data(ToData::Over(end), sky);
        }
        self.tell_control(ToControl::Link(end, Box::new(event)), sky);
    }

    /// Something came on a link's data lane.
    pub(crate) fn delivered(&mut self, end: EndId, what: Delivered, sky: &mut Sky) {
        match what {
            Delivered::Return(frame, credit) => self.data.returned(end, frame, credit, sky),
            Delivered::Dispatch(..) | Delivered::Weights { .. } => panic!("nodes send returns"),
        }
        self.forward(sky);
    }
}
