//! Requests that are set aside, and what each of them waits for.
//!
//! Pure. A request that has given way because nobody held an expert that it needs has no rows any more that could wait for it: so it is
//! remembered here what those lacked. It is called back when all of that has a holder again, and not before, since it would
//! be computed up to the same place once more. Who is called back last came first: so each finds its place at the head of its line.

use std::collections::BTreeMap;

use super::exchange::Lack;
use super::scheduler::RequestId;

/// See the module.
#[derive(Debug, Default)]
pub struct Aside {
    requests: BTreeMap<RequestId, Vec<(u32, Lack)>>,
}

impl Aside {
    /// A request is set aside: its row at this position lacks that. False if it lacks nothing.
    pub fn handle_set_aside(
        &mut self,
        request: RequestId,
        lacks: impl IntoIterator<Item = (u32, Lack)>,
    ) -> bool {
        let mut first: BTreeMap<Lack, u32> = BTreeMap::new();
        for (position, lack) in lacks {
            let known = first.entry(lack).or_insert(position);
            *known = position.min(*known);
        }
        let mut lacks: Vec<(u32, Lack)> =
            first.into_iter().map(|(lack, position)| (position, lack)).collect();
        lacks.sort_unstable();
        let is_any = !lacks.is_empty();
        if is_any {
            self.requests.insert(request, lacks);
        }
        is_any
    }

    /// A request has ended. Harmless if it was not set aside.
    pub fn handle_ended(&mut self, request: RequestId) {
        self.requests.remove(&request);
    }

    /// Somebody holds what nobody held: those that are to be called back, one after the other.
    pub fn handle_holders(&mut self, is_missing: impl Fn(Lack) -> bool) -> Vec<RequestId> {
        let lacks_any = |lacks: &[(u32, Lack)]| lacks.iter().any(|(_, lack)| is_missing(*lack));
        let found = self.requests.iter().filter(|(_, lacks)| !lacks_any(lacks)).map(|(id, _)| *id);
        let found: Vec<RequestId> = found.rev().collect();
        found.iter().for_each(|id| self.handle_ended(*id));
        found
    }

    /// What a request lacks that is missing still, and its row that does: the first.
    pub fn lack(&self, request: RequestId, is_missing: impl Fn(Lack) -> bool) -> Option<(u32, Lack)> {
        self.requests.get(&request)?.iter().copied().find(|(_, lack)| is_missing(*lack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lack(expert: u32) -> Lack {
        Lack { layer: 1, expert, shard: 0 }
    }

    /// It would come to the next one that is missing, and be set aside again.
    #[test]
    fn who_lacks_two_waits_for_both() {
        let mut aside = Aside::default();
        assert!(!aside.handle_set_aside(RequestId(9), []), "what it lacked is there already");
        assert!(aside.handle_set_aside(RequestId(1), [(12, lack(4)), (9, lack(4)), (10, lack(3))]));
        assert!(aside.handle_set_aside(RequestId(2), [(5, lack(4))]));
        assert!(aside.handle_set_aside(RequestId(3), [(5, lack(4))]));
        assert!(aside.handle_set_aside(RequestId(4), [(5, lack(3))]));
        assert_eq!(aside.lack(RequestId(1), |_| true), Some((9, lack(4))), "the first row");
        assert_eq!(
            aside.lack(RequestId(1), |of| of == lack(3)),
            Some((10, lack(3))),
            "what is there is not named"
        );
        assert_eq!(aside.lack(RequestId(9), |_| true), None);
        aside.handle_ended(RequestId(4));
        let found = aside.handle_holders(|of| of == lack(3));
        assert_eq!(found, [RequestId(3), RequestId(2)], "whoever came last, first");
        assert_eq!(aside.handle_holders(|_| false), [RequestId(1)]);
        assert_eq!(aside.handle_holders(|_| false), [], "each once");
    }
}
