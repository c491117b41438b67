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
    /// A coordinator that begins anew does not read who is drained.
    ForgetsDrained,
    /// A node that is drained is told at once to hold nothing.
    DropsDrained,
    /// A node that is drained is not told what it is to hold no more.
    KeepsDrained,
    /// A drain that is refused is stored all the same.
    StoresRefused,
    /// A node that wants to go may at once.
    LetsGoEarly,
    /// Whoever is to be drained is, whether or not there is room elsewhere.
    GrantsAll,
    /// Experts without a seat are given up wherever somebody is drained, by force or not.
    ForcesAll,
    /// What is computed of an answer that has lost an expert is kept for others.
    KeepsLeftOut,
    /// A client does not hear what its answer goes on without.
    HidesMissing,
    /// Rows of all requests go on without experts that nobody holds.
    LeavesOutExact,
    /// Those that may go on without an expert wait for it.
    LeavesOutNothing,
}

impl Bug {
    pub(crate) const ALL: [Self; 18] = [
        Self::FillsTwice,
        Self::ReusesEarly,
        Self::LeaksCredit,
        Self::DropsEarly,
        Self::ObeysTwoTerms,
        Self::MissesEnds,
        Self::SwallowsRefusals,
        Self::ForgetsDrained,
        Self::DropsDrained,
        Self::KeepsDrained,
        Self::StoresRefused,
        Self::LetsGoEarly,
        Self::GrantsAll,
        Self::ForcesAll,
        Self::KeepsLeftOut,
        Self::HidesMissing,
        Self::LeavesOutExact,
        Self::LeavesOutNothing,
    ];

    /// Whether a checker is there for it. An assertion of a core is not what is looked for here.
    pub(crate) fn is_found_by(self, checker: &str) -> bool {
        match self {
            Self::FillsTwice => checker == "once",
            Self::ReusesEarly => ["once", "oracle"].contains(&checker),
            Self::LeaksCredit => ["credits", "waits", "events"].contains(&checker),
            Self::DropsEarly | Self::DropsDrained | Self::LetsGoEarly => checker == "weights",
            Self::ObeysTwoTerms => checker == "publishers",
            Self::MissesEnds | Self::SwallowsRefusals | Self::LeavesOutNothing => {
                ["waits", "heals", "events"].contains(&checker)
            }
            Self::ForgetsDrained | Self::KeepsDrained | Self::StoresRefused | Self::GrantsAll => {
                checker == "drained"
            }
            Self::ForcesAll => checker == "holders",
            Self::KeepsLeftOut => checker == "pages",
            Self::HidesMissing | Self::LeavesOutExact => checker == "missing",
        }
    }
}
