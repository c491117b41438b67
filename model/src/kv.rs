//! The paged cache of keys and values.
//!
//! A page holds [`PAGE`] consecutive positions of one sequence, aligned to absolute positions, for
//! all layers. Inside a page both operands of attention lie as the kernels want to read them, so that
//! attention is two small matrix products and needs no gathering:
//!
//! * keys: panels of 16 positions, `[width / 2][16][2]`, so a lane is a position;
//! * values: panels of 16 columns, `[PAGE / 2][16][2]`, so a lane is an output column.
//!
//! A latent (MLA) is both key and value and is kept once, as values; its rotated part is a key.
//! In class `f32` an element is an f32 and pairs fall away: `[width][16]` and `[PAGE][16]`.
//!
//! Sequences that begin alike can share their first whole pages. A page that was shared once is never written again by
//! anybody, so nobody reads what another writes; it is free when the last who holds it has let go of it.

use std::fmt;

use crate::kernel::{Region, RowType, round_bf16, widen_bf16};
use crate::spec::{Attention, Spec};

/// Positions in a page.
pub const PAGE: usize = 64;
/// Lanes of a panel.
const LANES: usize = 16;

/// The pages that a cache may hold are all in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV cache is full: {needed} more pages of {PAGE} positions are needed, {free} of {total} are free; \
     raise --kv-memory, or shorten the prompt"
)]
pub struct KvFull {
    /// Pages asked for.
    pub needed: usize,
    /// Pages left.
    pub free: usize,
    /// Pages in all.
    pub total: usize,
}

/// What one layer keeps, and where in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKv {
    /// What it keeps.
    pub kind: KvKind,
    offset: usize,
}

/// What one layer keeps of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvKind {
    /// A key and a value per group of heads.
    Grouped {
        /// Groups.
        kv_heads: usize,
        /// Width of each.
        head_dim: usize,
    },
    /// One latent and one rotated key.
    Latent {
        /// Width of the latent.
        rank: usize,
        /// Width of the rotated key.
        rotary: usize,
    },
}

/// Bytes of one panel set: `width` values of every position in a page.
fn panels_bytes(width: usize, row: RowType) -> usize {
    width.next_multiple_of(LANES) * PAGE * row.bytes()
}

/// Keys are not padded to whole panels: their lanes are positions.
fn keys_bytes(width: usize, row: RowType) -> usize {
    width.next_multiple_of(2) * PAGE * row.bytes()
}

impl KvKind {
    fn bytes(self, row: RowType) -> usize {
        match self {
            KvKind::Grouped { kv_heads, head_dim } => {
                kv_heads * (keys_bytes(head_dim, row) + panels_bytes(head_dim, row))
            }
            KvKind::Latent { rank, rotary } => panels_bytes(rank, row) + keys_bytes(rotary, row),
        }
    }
}

/// The cache of a whole model.
pub struct KvCache {
    layers: Vec<LayerKv>,
    row: RowType,
    page_bytes: usize,
    pages: usize,
    region: Region,
    fresh: u32,
    returned: Vec<u32>,
    /// By page: the sequences and [`SharedPage`]s that hold it.
    holders: Vec<u32>,
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("pages", &self.pages)
            .field("page_bytes", &self.page_bytes)
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

/// The pages of one sequence.
#[derive(Debug, Default)]
pub struct Sequence {
    pages: Vec<u32>,
    length: usize,
    /// So many of the first pages may have other holders, and are not written any more.
    shared: usize,
}

/// A whole page that is kept for sequences which begin alike. It goes back by [`KvCache::forget`].
#[derive(Debug, PartialEq, Eq)]
pub struct SharedPage(u32);

impl Sequence {
    /// Positions written so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first position that may be written: those before lie in pages that may have other holders.
    pub fn writable_from(&self) -> usize {
        self.shared * PAGE
    }
}

impl KvCache {
    /// Bytes that a page of this model takes.
    pub fn page_bytes(spec: &Spec, row: RowType) -> usize {
        Self::layout(spec, row).1
    }

    /// A cache of at most `bytes`, and at least one page. Memory is touched only when it is used.
    pub fn new(spec: &Spec, row: RowType, bytes: usize) -> Self {
        let (layers, page_bytes) = Self::layout(spec, row);
        let pages = (bytes / page_bytes).clamp(1, u32::MAX as usize);
        let region = Region::new(pages * page_bytes);
        // Touched only as it is used, like the pages.
        let holders = vec![0; pages];
        Self { layers, row, page_bytes, pages, region, fresh: 0, returned: Vec::new(), holders }
    }

    fn layout(spec: &Spec, row: RowType) -> (Vec<LayerKv>, usize) {
        let mut offset = 0;
        let layers = spec
            .layers
            .iter()
            .map(|layer| {
                let kind = match &layer.attention {
                    Attention::Grouped(g) => KvKind::Grouped { kv_heads: g.kv_heads, head_dim: g.head_dim },
                    Attention::Latent(l) => KvKind::Latent { rank: l.latent_rank, rotary: l.rotary_dim },
                };
                let at = LayerKv { kind, offset };
                offset += kind.bytes(row);
                at
            })
            .collect();
        (layers, offset)
    }

    /// Pages not in use.
    pub fn free(&self) -> usize {
        self.pages - self.fresh as usize + self.returned.len()
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages that `sequence` needs to become longer by `count` positions.
    pub fn pages_needed(&self, sequence: &Sequence, count: usize) -> usize {
        (sequence.length + count).div_ceil(PAGE) - sequence.pages.len()
    }

    /// Makes `sequence` longer by `count` positions that are yet to be written.
    ///
    /// On an error nothing has changed.
    pub fn extend(&mut self, sequence: &mut Sequence, count: usize) -> Result<(), KvFull> {
        let needed = self.pages_needed(sequence, count);
        if needed > self.free() {
            return Err(KvFull { needed, free: self.free(), total: self.pages });
        }
        for _ in 0..needed {
            let page = self.returned.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            });
            self.holders[page as usize] = 1;
            sequence.pages.push(page);
        }
        sequence.length += count;
        Ok(())
    }

    /// Takes a sequence's pages back, but for those that others hold.
    pub fn release(&mut self, sequence: Sequence) {
        for page in sequence.pages {
            self.let_go(page);
        }
    }

    /// Keeps page `index` of a sequence, which must be whole, for others that begin alike. Neither it nor any page before it
    /// is written from now on; those before it must have been shared already.
    pub fn share(&mut self, sequence: &mut Sequence, index: usize) -> SharedPage {
        assert!(
            (index + 1) * PAGE <= sequence.length,
            "page {index} of {} positions is whole",
            sequence.length
        );
        assert!(index <= sequence.shared, "pages are shared one after the other");
        sequence.shared = sequence.shared.max(index + 1);
        let page = sequence.pages[index];
        self.holders[page as usize] += 1;
        SharedPage(page)
    }

    /// Makes a sequence longer by a page that is there already. All that it has must be such pages.
    pub fn adopt(&mut self, sequence: &mut Sequence, shared: &SharedPage) {
        assert_eq!(sequence.length, sequence.shared * PAGE, "what comes before a shared page is shared");
        self.hold(shared);
        sequence.pages.push(shared.0);
        sequence.length += PAGE;
        sequence.shared += 1;
    }

    /// Takes back a sequence's own page for one that holds the same. It must be whole, and the first that is not shared.
    pub fn replace(&mut self, sequence: &mut Sequence, index: usize, shared: &SharedPage) {
        assert!(
            (index + 1) * PAGE <= sequence.length,
            "page {index} of {} positions is whole",
            sequence.length
        );
        assert_eq!(index, sequence.shared, "pages are shared one after the other");
        self.hold(shared);
        let own = std::mem::replace(&mut sequence.pages[index], shared.0);
        sequence.shared += 1;
        self.let_go(own);
    }

    /// A page is kept no longer. Sequences that have it have it still.
    pub fn forget(&mut self, shared: SharedPage) {
        self.let_go(shared.0);
    }

    fn hold(&mut self, shared: &SharedPage) {
        let holders = &mut self.holders[shared.0 as usize];
        assert!(*holders > 0, "a page that is kept has a holder");
        *holders += 1;
    }

    fn let_go(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.returned.push(page);
        }
    }

    /// What layer `layer` keeps.
    pub fn layer(&self, layer: usize) -> LayerKv {
        self.layers[layer]
    }

    /// Element type.
    pub fn row_type(&self) -> RowType {
        self.row
    }

    fn page(&self, layer: LayerKv, sequence: &Sequence, position: usize) -> *mut u8 {
        let page = sequence.pages[position / PAGE] as usize;
        // SAFETY: a sequence only holds pages below `self.pages`, and a layer's offset lies inside a
        // page, so the result is inside the region.
        unsafe { self.region.as_ptr().add(page * self.page_bytes + layer.offset) }
    }

    /// The keys of `head` in the panel of 16 positions that begins at `position`.
    pub(crate) fn key_panel(
        &self,
        layer: LayerKv,
        sequence: &Sequence,
        head: usize,
        position: usize,
    ) -> *const u8 {
        let (start, width) = match layer.kind {
            KvKind::Grouped { head_dim, .. } => (head * keys_bytes(head_dim, self.row), head_dim),
            KvKind::Latent { rank, rotary } => (panels_bytes(rank, self.row), rotary),
        };
        let panel = position % PAGE / LANES;
        let at = start + panel * keys_bytes(width, self.row) * LANES / PAGE;
        // SAFETY: inside the layer's part of the page, by the layout above.
        unsafe { self.page(layer, sequence, position).add(at) }
    }

    /// The values of `head`, columns `16 * panel` on, for the whole page of `position`.
    pub(crate) fn value_panel(
        &self,
        layer: LayerKv,
        sequence: &Sequence,
        head: usize,
        panel: usize,
        position: usize,
    ) -> *const u8 {
        let start = match layer.kind {
            KvKind::Grouped { kv_heads, head_dim } => {
                kv_heads * keys_bytes(head_dim, self.row) + head * panels_bytes(head_dim, self.row)
            }
            KvKind::Latent { .. } => 0,
        };
        let at = start + panel * PAGE * LANES * self.row.bytes();
        // SAFETY: inside the layer's part of the page, by the layout above.
        unsafe { self.page(layer, sequence, position).add(at) }
    }

    /// Writes a key (or a latent's rotated part) of one position, rounded to the row type.
    ///
    /// # Safety
    /// No other thread reads or writes this layer, head and position meanwhile.
    pub(crate) unsafe fn write_key(
        &self,
        layer: LayerKv,
        sequence: &Sequence,
        head: usize,
        position: usize,
        key: &[f32],
    ) {
        let panel = self.key_panel(layer, sequence, head, position).cast_mut();
        let lane = position % LANES;
        for (i, &x) in key.iter().enumerate() {
            // SAFETY: lane and index lie inside the panel; the caller has it alone.
            unsafe {
                match self.row {
                    RowType::Bf16 => {
                        let at = (i / 2 * LANES + lane) * 2 + i % 2;
                        panel.cast::<u16>().add(at).write(round_bf16(x));
                    }
                    RowType::F32 => panel.cast::<f32>().add(i * LANES + lane).write(x),
                }
            }
        }
    }

    /// Writes a value (or a latent) of one position, rounded to the row type.
    ///
    /// # Safety
    /// No other thread reads or writes this layer, head and position meanwhile.
    pub(crate) unsafe fn write_value(
        &self,
        layer: LayerKv,
        sequence: &Sequence,
        head: usize,
        position: usize,
        value: &[f32],
    ) {
        let slot = position % PAGE;
        for (panel, columns) in value.chunks(LANES).enumerate() {
            let at = self.value_panel(layer, sequence, head, panel, position).cast_mut();
            for (lane, &x) in columns.iter().enumerate() {
                // SAFETY: lane and slot lie inside the panel; the caller has it alone.
                unsafe {
                    match self.row {
                        RowType::Bf16 => {
                            let at = at.cast::<u16>().add((slot / 2 * LANES + lane) * 2 + slot % 2);
                            at.write(round_bf16(x));
                        }
                        RowType::F32 => at.cast::<f32>().add(slot * LANES + lane).write(x),
                    }
                }
            }
        }
    }

    /// What one position keeps in one layer, in order of head and column: for tests and digests.
    pub fn read(&self, layer: usize, sequence: &Sequence, position: usize) -> Vec<f32> {
        assert!(position < sequence.length, "position {position} of {}", sequence.length);
        let layer = self.layer(layer);
        let (heads, key, value) = match layer.kind {
            KvKind::Grouped { kv_heads, head_dim } => (kv_heads, head_dim, head_dim),
            KvKind::Latent { rank, rotary } => (1, rotary, rank),
        };
        let element = |panel: *const u8, at: usize| {
            // SAFETY: `at` is inside the panel; `&self` excludes writers, which need the layer alone.
            unsafe {
                match self.row {
                    RowType::Bf16 => widen_bf16(panel.cast::<u16>().add(at).read()),
                    RowType::F32 => panel.cast::<f32>().add(at).read(),
                }
            }
        };
        let paired = |row: usize, lane: usize| match self.row {
            RowType::Bf16 => (row / 2 * LANES + lane) * 2 + row % 2,
            RowType::F32 => row * LANES + lane,
        };
        let mut out = Vec::new();
        for head in 0..heads {
            let panel = self.key_panel(layer, sequence, head, position);
            out.extend((0..key).map(|i| element(panel, paired(i, position % LANES))));
            out.extend((0..value).map(|i| {
                let panel = self.value_panel(layer, sequence, head, i / LANES, position);
                element(panel, paired(position % PAGE, i % LANES))
            }));
        }
        out
    }
}
