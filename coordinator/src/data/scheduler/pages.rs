//! Whose the pages are: nobody's, a sequence's own, or blocks'.
//!
//! Pure. Every page is one of these at every moment, so the three counts add up to all of them.

use std::collections::VecDeque;

use super::Action;
use super::prefix::{BlockHash, ByHash, Kept, PrefixCache};
use super::sequences::Sequence;
use crate::data::ids::SequenceId;

/// What the prefix cache has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixSeen {
    /// Sequences that began.
    pub begun: u64,
    /// Those of them that found blocks.
    pub hits: u64,
    /// Positions that those did not have to compute.
    pub positions: u64,
    /// Blocks given up because their pages were needed.
    pub evicted: u64,
    /// Pages that are blocks now.
    pub pages: u32,
}

/// All pages.
#[derive(Debug)]
pub(super) struct Pages {
    free: u32,
    cache: PrefixCache,
    /// Blocks that are being computed, and by whom.
    promised: ByHash<SequenceId>,
    seen: PrefixSeen,
}

impl Pages {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            free: pages,
            cache: PrefixCache::new(pages),
            promised: ByHash::default(),
            seen: PrefixSeen::default(),
        }
    }

    /// Pages that may be given to a sequence.
    pub(super) fn available(&self) -> u32 {
        self.free + self.cache.idle()
    }

    pub(super) fn seen(&self) -> PrefixSeen {
        PrefixSeen { pages: self.cache.len(), ..self.seen }
    }

    /// How many of these blocks are there, from the first on, and how many of those are among the available pages.
    pub(super) fn find(&self, hashes: &[BlockHash]) -> (u32, u32) {
        self.cache.find(hashes)
    }

    /// A page for a sequence, if one is available. A block that has to go for it is named first.
    pub(super) fn give(&mut self, to: &mut Sequence, actions: &mut VecDeque<Action>) -> bool {
        if self.free == 0 {
            let Some(block) = self.cache.evict() else { return false };
            self.seen.evicted += 1;
            self.free += 1;
            actions.push_back(Action::Forget { block });
        }
        self.free -= 1;
        to.own += 1;
        true
    }

    /// Gives a sequence that has no rows yet the blocks that are there for its beginning. Pages of its own that it had for them
    /// come back. True if the next block is being computed for another one: then it is worth waiting for.
    pub(super) fn give_found(
        &mut self,
        sequence: SequenceId,
        to: &mut Sequence,
        hashes: &[BlockHash],
        actions: &mut VecDeque<Action>,
    ) -> bool {
        while let Some(hash) = hashes.get(to.blocks.len()) {
            let Some(block) = self.cache.take(hash) else { break };
            to.blocks.push(block);
            to.next += super::PAGE;
            to.found += 1;
            // When it begins it has none yet.
            let spared = u32::from(to.own > 0);
            to.own -= spared;
            self.free += spared;
            actions.push_back(Action::Share { sequence, block });
        }
        let next = hashes.get(to.blocks.len()).and_then(|hash| self.promised.get(hash));
        next.is_some_and(|by| *by != sequence)
    }

    /// The first rows of a sequence are given out: what it found counts, and the rest is promised.
    pub(super) fn handle_first_rows(&mut self, sequence: SequenceId, of: &Sequence, hashes: &[BlockHash]) {
        self.seen.begun += 1;
        self.seen.hits += u64::from(of.found > 0);
        self.seen.positions += u64::from(of.found * super::PAGE);
        self.promise(sequence, of, hashes);
    }

    /// The rest of its whole blocks will come, unless somebody else computes them.
    pub(super) fn promise(&mut self, sequence: SequenceId, of: &Sequence, hashes: &[BlockHash]) {
        for hash in to_come(of, hashes) {
            self.promised.entry(*hash).or_insert(sequence);
        }
    }

    /// It will give no more than it has: it has been given out, or it leaves.
    pub(super) fn forget_promises(&mut self, sequence: SequenceId, of: &Sequence, hashes: &[BlockHash]) {
        for hash in to_come(of, hashes) {
            if self.promised.get(hash) == Some(&sequence) {
                self.promised.remove(hash);
            }
        }
    }

    /// All rows that a sequence has given out are computed: its whole pages are blocks from now on.
    pub(super) fn keep(
        &mut self,
        sequence: SequenceId,
        of: &mut Sequence,
        hashes: &[BlockHash],
        actions: &mut VecDeque<Action>,
    ) {
        let whole = (of.next / super::PAGE) as usize;
        for hash in hashes.iter().take(whole).skip(of.blocks.len()) {
            let index = of.blocks.len() as u32;
            of.own -= 1;
            let (block, action) = match self.cache.keep(*hash) {
                Kept::New(block) => (block, Action::Keep { sequence, index, block }),
                Kept::Known(block) => {
                    self.free += 1;
                    (block, Action::Replace { sequence, index, block })
                }
            };
            of.blocks.push(block);
            actions.push_back(action);
        }
    }

    /// Nobody is to find what this sequence has computed.
    pub(super) fn hide(&mut self, of: &Sequence) {
        of.blocks[of.found as usize..].iter().for_each(|block| self.cache.hide(*block));
    }

    /// All that a sequence has comes back.
    pub(super) fn take_back(&mut self, from: &mut Sequence, actions: &mut VecDeque<Action>) {
        self.free += std::mem::take(&mut from.own);
        for block in from.blocks.drain(..).rev() {
            if self.cache.let_go(block) {
                self.free += 1;
                actions.push_back(Action::Forget { block });
            }
        }
    }
}

/// The blocks that a sequence will have when its prompt is computed and that it has not now.
fn to_come<'a>(of: &Sequence, hashes: &'a [BlockHash]) -> &'a [BlockHash] {
    let end = hashes.len().min((of.target / super::PAGE) as usize);
    &hashes[of.blocks.len().min(end)..end]
}
