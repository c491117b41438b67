//! Bugs that are planted so that the checkers show what they are for.
//!
//! Each is a way in which a shell does not do what a core asked for, or asks for. The product has no hook for them.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A return that comes second is written all the same.
    FillsTwice,
    /// A return that lost is written where its row, or another one, waits for something else by now.
    ReusesEarly,
    /// The room of a dispatch that a node refuses never goes back.
    LeaksCredit,
    /// The control plane hears too early that dispatches under older epochs are closed: weights go that are still asked for.
    DropsEarly,
    /// A node obeys whoever spoke last, whatever its term.
    ObeysTwoTerms,
    /// The data plane does not hear that a link is over.
    MissesEnds,
    /// A refusal is now and then not told to the exchange.
    SwallowsRefusals,
}

impl Bug {
    pub(crate) const ALL: [Self; 7] = [
        Self::FillsTwice,
        Self::ReusesEarly,
        Self::LeaksCredit,
        Self::DropsEarly,
        Self::ObeysTwoTerms,
        Self::MissesEnds,
        Self::SwallowsRefusals,
    ];

    /// Whether a checker is there for it. An assertion of a core is not what is looked for here.
    pub(crate) fn is_found_by(self, checker: &str) -> bool {
        match self {
            Self::FillsTwice => checker == "once",
            Self::ReusesEarly => ["once", "oracle"].contains(&checker),
            Self::LeaksCredit => ["credits", "waits", "events"].contains(&checker),
            Self::DropsEarly => checker == "weights",
            Self::ObeysTwoTerms => checker == "publishers",
            Self::MissesEnds | Self::SwallowsRefusals => ["waits", "heals", "events"].contains(&checker),
        }
    }
}
