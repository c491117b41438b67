//! Which whole pages are kept for prompts that begin like an earlier one.
//!
//! Pure, and of bounded size: as many blocks as there are pages. A **block** is a page that is kept: 64 positions of some
//! prompt or answer, under a hash of all ids up to its end. So one hash stands for one beginning, and a beginning is found block
//! by block from the first.
//!
//! A page's bits depend on the ids up to its end, on the model, the numeric class, the number of shards, and the bias under which rows
//! chose their experts. Within one coordinator all of that but ids and bias is constant, and blocks never leave it: so the chain of
//! hashes begins with the bias's digest, and with nothing where there is no bias.
//!
//! A block that sequences use is theirs, read only. One that nobody uses is *idle*: it may be found again, and is given up when
//! pages are needed, the one that was idle longest first. Sequences let go of their last block first, so that of a
//! beginning the end goes before what leads to it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use crate::data::flow::lines::{Line, Links};
use crate::data::ids::BlockId;

/// Names all ids from the beginning of a sequence to the end of a block. Two different beginnings with one name would be
/// answered alike: so it is a cryptographic hash, and whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHash([u8; 32]);

impl std::hash::Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Any eight bytes of it are as good as another hash.
        state.write_u64(u64::from_le_bytes(self.0[..8].try_into().expect("eight of thirty-two")));
    }
}

/// Takes a [`BlockHash`] as it is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a block's hash is written as one number");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl BuildHasher for AsItIs {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self::default()
    }
}

/// A table by the hashes of blocks.
pub(super) type ByHash<T> = HashMap<BlockHash, T, AsItIs>;

/// The hashes of a sequence's whole blocks, as its ids come.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain {
    /// What the first block's name is made of beside its ids.
    begins_with: Option<[u8; 32]>,
    hashes: Vec<BlockHash>,
    /// Ids that are no whole block yet.
    rest: Vec<u32>,
}

impl Chain {
    /// A chain for a sequence of up to so many ids, whose rows choose under the bias of this digest.
    pub(super) fn with_capacity(ids_max: usize, page: usize, bias: Option<[u8; 32]>) -> Self {
        let (hashes, rest) = (Vec::with_capacity(ids_max / page), Vec::with_capacity(page));
        Self { begins_with: bias, hashes, rest }
    }

    /// The next id.
    pub(super) fn push(&mut self, id: u32, page: usize) {
        self.rest.push(id);
        if self.rest.len() < page {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        if let Some(before) = self.hashes.last().map(|BlockHash(hash)| hash).or(self.begins_with.as_ref()) {
            hasher.update(before);
        }
        for id in self.rest.drain(..) {
            hasher.update(&id.to_le_bytes());
        }
        self.hashes.push(BlockHash(hasher.finalize().into()));
    }

    /// Of all whole blocks.
    pub(super) fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }
}

/// What came of a page that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is a block from now on.
    New(BlockId),
    /// There is such a block, and it is to be used instead: the page is not needed any more.
    Known(BlockId),
}

#[derive(Debug, Clone, Copy)]
struct Block {
    hash: BlockHash,
    /// Sequences that have it.
    users: u32,
    /// Whether it can be found.
    is_known: bool,
}

/// All blocks.
#[derive(Debug)]
pub(super) struct PrefixCache {
    blocks: Vec<Block>,
    free: Vec<u32>,
    known: ByHash<BlockId>,
    idle: Line,
    links: Links,
}

impl PrefixCache {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            known: ByHash::default(),
            idle: Line::default(),
            links: Links::new(pages as usize),
        }
    }

    /// Pages that are blocks.
    pub(super) fn len(&self) -> u32 {
        (self.blocks.len() - self.free.len()) as u32
    }

    /// Blocks that nobody uses.
    pub(super) fn idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// How many of these blocks are there, from the first on, and how many of those are idle.
    pub(super) fn find(&self, hashes: &[BlockHash]) -> (u32, u32) {
        let mut found = (0, 0);
        for block in hashes.iter().map_while(|hash| self.known.get(hash)) {
            found.0 += 1;
            found.1 += u32::from(self.block(*block).users == 0);
        }
        found
    }

    /// A sequence has this block from now on, if it is there.
    pub(super) fn take(&mut self, hash: &BlockHash) -> Option<BlockId> {
        let block = *self.known.get(hash)?;
        if self.block(block).users == 0 {
            self.links.remove(&mut self.idle, block.0);
        }
        self.block_mut(block).users += 1;
        Some(block)
    }

    /// A sequence has computed a page of this hash: it is a block from now on, which the sequence has.
    pub(super) fn keep(&mut self, hash: BlockHash) -> Kept {
        if let Some(block) = self.take(&hash) {
            return Kept::Known(block);
        }
        let new = Block { hash, users: 1, is_known: true };
        let block = match self.free.pop() {
            Some(place) => {
                self.blocks[place as usize] = new;
                BlockId(place)
            }
            None => {
                self.blocks.push(new);
                BlockId(self.blocks.len() as u32 - 1)
            }
        };
        self.known.insert(hash, block);
        Kept::New(block)
    }

    /// A sequence has this block no longer. True if it is no block any more and its page is free: nobody was to find it.
    pub(super) fn let_go(&mut self, block: BlockId) -> bool {
        let of = self.block_mut(block);
        of.users -= 1;
        match (of.users, of.is_known) {
            (0, true) => self.links.push_back(&mut self.idle, block.0),
            (0, false) => {
                self.free.push(block.0);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Nobody is to find this block, which a sequence has, from now on.
    pub(super) fn hide(&mut self, block: BlockId) {
        let of = self.block_mut(block);
        if std::mem::take(&mut of.is_known) {
            let hash = of.hash;
            self.known.remove(&hash);
        }
    }

    /// Gives up the block that was idle longest: its page is free.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let block = BlockId(self.links.pop_front(&mut self.idle)?);
        self.hide(block);
        self.free.push(block.0);
        Some(block)
    }

    fn block(&self, block: BlockId) -> &Block {
        &self.blocks[block.0 as usize]
    }

    fn block_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Positions of a block here.
    const FEW: usize = 2;

    fn chain(ids: &[u32]) -> Chain {
        let mut chain = Chain::with_capacity(ids.len(), FEW, None);
        ids.iter().for_each(|id| chain.push(*id, FEW));
        chain
    }

    #[test]
    fn a_name_stands_for_all_ids_up_to_its_end() {
        let hashes = |ids: &[u32]| chain(ids).hashes().to_vec();
        assert_eq!(hashes(&[1, 2, 3, 4, 5]).len(), 2, "the last block is not whole");
        assert_eq!(hashes(&[1, 2, 3, 4, 5]), hashes(&[1, 2, 3, 4]));
        assert_ne!(hashes(&[1, 2, 3, 4])[1], hashes(&[3, 4])[0], "the same ids at another place");
        assert_ne!(hashes(&[1, 2, 3, 4])[1], hashes(&[1, 9, 3, 4])[1], "the same block after another one");
    }

    /// What was computed under one bias is never found under another one, nor without: none of their names are alike.
    #[test]
    fn a_name_stands_for_the_bias_too() {
        let ids = [1, 2, 3, 4, 5, 6];
        let under = |bias: Option<[u8; 32]>| {
            let mut chain = Chain::with_capacity(ids.len(), FEW, bias);
            ids.iter().for_each(|id| chain.push(*id, FEW));
            chain.hashes().to_vec()
        };
        let all = [None, Some([0; 32]), Some([7; 32])].map(under);
        assert_eq!(all[0], chain(&ids).hashes());
        for (at, hashes) in all.iter().enumerate() {
            assert_eq!(hashes.len(), 3);
            let others = all[..at].iter().flatten();
            assert!(others.clone().all(|other| !hashes.contains(other)), "{at}");
        }
        let mut cache = PrefixCache::new(10);
        let kept = all[1].iter().map(|hash| cache.keep(*hash)).count();
        assert_eq!(kept, 3);
        assert_eq!([&all[0], &all[1], &all[2]].map(|hashes| cache.find(hashes).0), [0, 3, 0]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// A sequence with these ids takes what is there and computes the rest.
        Begin(Vec<u32>),
        /// One of them ends.
        End(usize),
        /// A page is needed.
        Evict,
        /// One of them failed after so many blocks.
        Hide(usize, usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        let ids = prop::collection::vec(0..2_u32, 0..12);
        prop_oneof![
            4 => ids.prop_map(Event::Begin),
            3 => any::<usize>().prop_map(Event::End),
            2 => Just(Event::Evict),
            1 => (any::<usize>(), 0..4_usize).prop_map(|(which, from)| Event::Hide(which, from)),
        ]
    }

    /// A block as one would keep it without any thought of cost: by the ids themselves.
    struct Plain {
        block: BlockId,
        ids: Vec<u32>,
        users: usize,
        is_hidden: bool,
    }

    /// The blocks of a naive cache, those that are idle in the order in which they became so.
    #[derive(Default)]
    struct Naive {
        blocks: Vec<Plain>,
        idle: Vec<BlockId>,
    }

    impl Naive {
        fn find(&mut self, ids: &[u32]) -> Option<&mut Plain> {
            self.blocks.iter_mut().find(|plain| plain.ids == ids && !plain.is_hidden)
        }

        fn of(&mut self, block: BlockId) -> &mut Plain {
            self.blocks.iter_mut().find(|plain| plain.block == block).unwrap()
        }

        fn take(&mut self, block: BlockId) {
            self.of(block).users += 1;
            self.idle.retain(|idle| *idle != block);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

        /// Beside a list that is searched id by id: found is what is there and nothing else, what is used is never given up, and every
        /// block is used, idle, or gone.
        #[test]
        fn it_is_a_list_of_beginnings(events in prop::collection::vec(event(), 1..120)) {
            let mut cache = PrefixCache::new(1_000);
            let mut naive = Naive::default();
            let mut sequences: Vec<Vec<BlockId>> = Vec::new();
            for event in events {
                match event {
                    Event::Begin(ids) => {
                        let chain = chain(&ids);
                        let (found, idle) = cache.find(chain.hashes());
                        let ends = || (1..=ids.len() / FEW).map(|count| &ids[..count * FEW]);
                        let known: Vec<BlockId> =
                            ends().map_while(|ids| naive.find(ids).map(|plain| plain.block)).collect();
                        prop_assert_eq!(found as usize, known.len());
                        prop_assert_eq!(idle as usize, known.iter().filter(|block| naive.idle.contains(block)).count());
                        let mut held = Vec::new();
                        for (hash, ids) in chain.hashes().iter().zip(ends()) {
                            let there = naive.find(ids).map(|plain| plain.block);
                            let block = match held.len() < found as usize {
                                true => cache.take(hash).unwrap(),
                                false => match (cache.keep(*hash), there) {
                                    (Kept::Known(block), Some(_)) => block,
                                    (Kept::New(block), None) => {
                                        prop_assert!(naive.blocks.iter().all(|plain| plain.block != block));
                                        let ids = ids.to_vec();
                                        naive.blocks.push(Plain { block, ids, users: 0, is_hidden: false });
                                        block
                                    }
                                    (kept, there) => panic!("{kept:?}, and {there:?} is there"),
                                },
                            };
                            prop_assert_eq!(&naive.of(block).ids, ids, "none is mistaken for another");
                            naive.take(block);
                            held.push(block);
                        }
                        sequences.push(held);
                    }
                    Event::End(which) if !sequences.is_empty() => {
                        let at = which % sequences.len();
                        for block in sequences.swap_remove(at).into_iter().rev() {
                            let plain = naive.of(block);
                            plain.users -= 1;
                            let (is_last, is_hidden) = (plain.users == 0, plain.is_hidden);
                            prop_assert_eq!(cache.let_go(block), is_last && is_hidden);
                            match (is_last, is_hidden) {
                                (true, true) => naive.blocks.retain(|plain| plain.block != block),
                                (true, false) => naive.idle.push(block),
                                _ => {}
                            }
                        }
                    }
                    Event::Hide(which, from) if !sequences.is_empty() => {
                        for block in sequences[which % sequences.len()].iter().skip(from) {
                            cache.hide(*block);
                            naive.of(*block).is_hidden = true;
                        }
                    }
                    Event::Evict => {
                        let oldest = (!naive.idle.is_empty()).then(|| naive.idle.remove(0));
                        prop_assert_eq!(cache.evict(), oldest, "what was idle longest, and nothing that is used");
                        naive.blocks.retain(|plain| Some(plain.block) != oldest);
                    }
                    Event::End(_) | Event::Hide(..) => {}
                }
                prop_assert_eq!(cache.len() as usize, naive.blocks.len());
                prop_assert_eq!(cache.idle() as usize, naive.idle.len());
            }
        }
    }
}
