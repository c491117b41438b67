//! A model of `Flow` that keeps everything that ever happened and looks at all of it.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_coordinator::data::flow::{Batch, Chunk, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::{RowId, SequenceId};

/// A row's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Door,
    Trunk,
    Out,
}

#[derive(Debug, Clone)]
struct Row {
    id: Option<RowId>,
    stage: u32,
    place: Place,
    samples: bool,
    /// It comes to the head, whatever that has to do.
    has_head: bool,
    visits: Vec<u32>,
    /// The step it is part of, if it entered in mode `Whole`.
    step: Option<u64>,
}

/// Sequences that live in the same place one after the other are told apart by a number.
type Life = (SequenceId, u64);

pub(crate) struct Oracle {
    settings: FlowSettings,
    pub(crate) forwarding: Forwarding,
    rows: BTreeMap<(Life, u32), Row>,
    /// Positions attended at a stage.
    attended: BTreeSet<(Life, u32, u32)>,
    next: BTreeMap<Life, u32>,
    lives: BTreeMap<SequenceId, u64>,
    leaving: BTreeSet<Life>,
    /// Rows that are stranded, and those whose sequences are, or were when they began to leave.
    stranded: BTreeSet<(Life, u32)>,
    stranded_lives: BTreeSet<Life>,
    pub(crate) left: Vec<SequenceId>,
    pub(crate) passed: u64,
    steps: u64,
    /// For each door, since how many batches something has been ready there.
    waited: Vec<u64>,
    pub(crate) waited_max: u64,
}

impl Oracle {
    pub(crate) fn new(settings: FlowSettings) -> Self {
        Self {
            forwarding: settings.forwarding,
            waited: vec![0; settings.stages as usize],
            settings,
            rows: BTreeMap::new(),
            attended: BTreeSet::new(),
            next: BTreeMap::new(),
            lives: BTreeMap::new(),
            leaving: BTreeSet::new(),
            stranded: BTreeSet::new(),
            stranded_lives: BTreeSet::new(),
            left: Vec::new(),
            passed: 0,
            steps: 0,
            waited_max: 0,
        }
    }

    fn life(&self, sequence: SequenceId) -> Life {
        (sequence, self.lives.get(&sequence).copied().unwrap_or(0))
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn is_leaving(&self, sequence: SequenceId) -> bool {
        self.leaving.contains(&self.life(sequence))
    }

    /// Where the next chunk of a sequence begins, if it has begun.
    pub(crate) fn next(&self, sequence: SequenceId) -> Option<u32> {
        self.next.get(&self.life(sequence)).copied()
    }

    /// Rows that may come back: those that are out, and have somebody who computes them.
    pub(crate) fn out(&self) -> Vec<RowId> {
        let out = self.rows.iter().filter(|(_, row)| row.place == Place::Out);
        let out = out.filter(|(key, _)| !self.stranded.contains(*key) || self.leaving.contains(&key.0));
        out.map(|(_, row)| row.id.unwrap()).collect()
    }

    /// Rows that are stranded and do not leave.
    pub(crate) fn stranded(&self) -> Vec<RowId> {
        let stays = self.stranded.iter().filter(|key| !self.leaving.contains(&key.0));
        stays.map(|key| self.rows[key].id.unwrap()).collect()
    }

    pub(crate) fn rows_stranded(&self) -> usize {
        self.rows.keys().filter(|(life, _)| self.stranded_lives.contains(life)).count()
    }

    /// Whether another row, or the head, waits for one that is out.
    pub(crate) fn is_needed(&self, id: RowId) -> bool {
        let row = self.rows.values().find(|row| row.id == Some(id)).unwrap();
        let visits_head = self.settings.head_has_layers || row.has_head;
        visits_head || row.stage + 2 < self.settings.stages
    }

    /// A row is stranded, or so no more. Its sequence, if with it that is.
    pub(crate) fn strand(&mut self, id: RowId, is_stranded: bool) -> Option<SequenceId> {
        let key = *self.rows.iter().find(|(_, row)| row.id == Some(id)).unwrap().0;
        if self.leaving.contains(&key.0) {
            return None;
        }
        match is_stranded {
            true => self.stranded.insert(key),
            false => self.stranded.remove(&key),
        };
        let has_changed = match self.stranded.iter().any(|other| other.0 == key.0) {
            true => self.stranded_lives.insert(key.0),
            false => self.stranded_lives.remove(&key.0),
        };
        if has_changed && is_stranded {
            self.break_up();
        }
        has_changed.then_some(key.0.0)
    }

    /// All that wait for nothing but the trunk and those who compute experts are through.
    pub(crate) fn check_all_are_stranded(&self) {
        assert!(
            self.rows.keys().all(|(life, _)| self.stranded_lives.contains(life)),
            "nobody waits for others"
        );
    }

    pub(crate) fn chunk(&mut self, chunk: Chunk) {
        let life = self.life(chunk.sequence);
        for i in 0..chunk.count {
            let row = Row {
                id: None,
                stage: 0,
                place: Place::Door,
                samples: chunk.samples && i + 1 == chunk.count,
                has_head: chunk.is_scored || (chunk.samples && i + 1 == chunk.count),
                visits: vec![0; self.settings.stages as usize],
                step: None,
            };
            assert!(self.rows.insert((life, chunk.start + i), row).is_none());
        }
        self.next.insert(life, chunk.start + chunk.count);
    }

    /// Rows that may be computed at a stage, by the definition: whole, and every earlier position attended there or
    /// computed before it in the same batch.
    fn ready(&self, stage: u32) -> Vec<(Life, u32)> {
        let mut ready: Vec<(Life, u32)> = Vec::new();
        for (&(life, position), row) in &self.rows {
            let waits = row.stage == stage && row.place == Place::Door;
            let unordered = stage + 1 == self.settings.stages && !self.settings.head_has_layers;
            let in_order = unordered
                || self.rows.range((life, 0)..(life, position)).all(|(&(_, earlier), _)| {
                    self.attended.contains(&(life, earlier, stage)) || ready.contains(&(life, earlier))
                });
            if waits && in_order {
                ready.push((life, position));
            }
        }
        ready
    }

    fn inside(&self) -> Vec<&Row> {
        self.rows.values().filter(|row| row.stage > 0 || row.place != Place::Door).collect()
    }

    /// The doors from which a batch may be taken now.
    fn open_doors(&self) -> Vec<u32> {
        let with_ready: Vec<u32> =
            (0..self.settings.stages).filter(|&stage| !self.ready(stage).is_empty()).collect();
        if self.forwarding == Forwarding::Partial {
            return with_ready;
        }
        let inside = self.inside();
        let is_stranded = |row: &&Row| {
            let of = self.rows.iter().find(|(_, other)| std::ptr::eq(*other, *row)).unwrap().0;
            self.stranded_lives.contains(&of.0)
        };
        if inside.iter().all(is_stranded) && with_ready.contains(&0) {
            return vec![0];
        }
        let mixed = inside.iter().any(|row| row.step.is_none() || row.step != inside[0].step);
        match inside.is_empty() {
            true => Vec::new(),
            false if mixed => with_ready.into_iter().filter(|&stage| stage > 0).collect(),
            false if inside.iter().any(|row| row.place != Place::Door) => Vec::new(),
            false => with_ready.into_iter().filter(|&stage| stage > 0).collect(),
        }
    }

    /// The flow, idle, has no batch.
    pub(crate) fn no_batch(&self) {
        assert_eq!(self.open_doors(), [] as [u32; 0], "a batch could start");
    }

    /// The flow gives a batch: is it one that may be?
    pub(crate) fn batch(&mut self, batch: &Batch, position: impl Fn(RowId) -> (SequenceId, u32)) {
        let stage = batch.stage;
        assert!(self.open_doors().contains(&stage), "stage {stage} may start");
        let ready = self.ready(stage);
        let count = ready.len().min(self.settings.batch_rows_max as usize);
        assert_eq!(batch.rows.len(), count, "all that is ready goes together");
        self.count_waits(stage);
        self.steps += u64::from(stage == 0 && self.forwarding == Forwarding::Whole);
        // Where others are inside there are stranded ones, and no step.
        let is_step = self.forwarding == Forwarding::Whole && self.inside().is_empty();
        let step = is_step.then_some(self.steps);
        let (mut end, mut done) = (0, BTreeSet::new());
        for run in &batch.runs {
            assert!(run.rows.start == end && run.rows.end > end, "runs cover the rows, one behind the other");
            end = run.rows.end;
            let life = self.life(run.sequence);
            for (i, &id) in batch.rows[run.rows.start as usize..end as usize].iter().enumerate() {
                let at = run.start + i as u32;
                assert_eq!(position(id), (run.sequence, at));
                assert!(ready.contains(&(life, at)) && done.insert((life, at)), "ready, and taken once");
                let last = run.rows.start as usize + i + 1 == end as usize;
                let row = &self.rows[&(life, at)];
                assert_eq!(row.samples, last && run.samples, "only the last row of a run is sampled");
                assert!(row.id.is_none_or(|known| known == id));
                // In the order of the batch, so that what is attended just now counts for the next.
                let unordered = stage + 1 == self.settings.stages && !self.settings.head_has_layers;
                for (&(_, earlier), _) in self.rows.range((life, 0)..(life, at)) {
                    assert!(unordered || self.attended.contains(&(life, earlier, stage)), "in order");
                }
                self.attended.insert((life, at, stage));
                let row = self.rows.get_mut(&(life, at)).unwrap();
                (row.id, row.place) = (Some(id), Place::Trunk);
                row.visits[stage as usize] += 1;
                if stage == 0 {
                    row.step = step;
                }
            }
        }
        assert_eq!(end as usize, batch.rows.len());
        let ids: BTreeSet<RowId> = self.rows.values().filter_map(|row| row.id).collect();
        assert_eq!(
            ids.len(),
            self.rows.values().filter(|row| row.id.is_some()).count(),
            "no row shares a place"
        );
    }

    fn count_waits(&mut self, taken: u32) {
        for stage in 0..self.settings.stages {
            let waits = stage != taken && !self.ready(stage).is_empty();
            let counts = self.forwarding == Forwarding::Partial;
            let waited = &mut self.waited[stage as usize];
            *waited = if waits && counts { *waited + 1 } else { 0 };
            self.waited_max = self.waited_max.max(*waited);
        }
    }

    pub(crate) fn attended(&mut self, is_out: impl Fn(RowId) -> bool) {
        let head = self.settings.stages - 1;
        let in_trunk: Vec<(Life, u32)> =
            self.rows.iter().filter(|(_, row)| row.place == Place::Trunk).map(|(&key, _)| key).collect();
        for key in in_trunk {
            let row = self.rows.get_mut(&key).unwrap();
            let goes = row.stage == head || self.leaving.contains(&key.0);
            assert_eq!(is_out(row.id.unwrap()), !goes);
            row.place = Place::Out;
            if goes {
                self.gone(key);
            }
        }
    }

    pub(crate) fn whole(&mut self, id: RowId) {
        let is_it = |row: &Row| row.id == Some(id) && row.place == Place::Out;
        let key = *self.rows.iter().find(|(_, row)| is_it(row)).unwrap().0;
        let head = self.settings.stages - 1;
        let row = self.rows.get_mut(&key).unwrap();
        if !self.leaving.contains(&key.0) {
            (row.stage, row.place) = (row.stage + 1, Place::Door);
        }
        let ends_here = row.stage == head && !self.settings.head_has_layers && !row.has_head;
        if ends_here || self.leaving.contains(&key.0) {
            self.gone(key);
        }
    }

    pub(crate) fn cancel(&mut self, sequence: SequenceId) {
        let life = self.life(sequence);
        if !self.next.contains_key(&life) || !self.leaving.insert(life) {
            return;
        }
        self.rows.retain(|key, row| key.0 != life || row.place != Place::Door);
        self.look_whether_left(life);
    }

    fn gone(&mut self, key: (Life, u32)) {
        let row = self.rows.remove(&key).unwrap();
        self.stranded.remove(&key);
        if !self.leaving.contains(&key.0) {
            self.passed += 1;
            let skips_head = !self.settings.head_has_layers && !row.has_head;
            for (stage, &visits) in row.visits.iter().enumerate() {
                let skipped = skips_head && stage + 1 == row.visits.len();
                assert_eq!(visits, u32::from(!skipped), "a row passes every stage once");
            }
        }
        self.look_whether_left(key.0);
    }

    fn look_whether_left(&mut self, life: Life) {
        if self.leaving.contains(&life) && !self.rows.keys().any(|key| key.0 == life) {
            self.left.push(life.0);
            self.stranded_lives.remove(&life);
            *self.lives.entry(life.0).or_default() += 1;
        }
    }
}

impl Oracle {
    pub(crate) fn has_rows(&self, sequence: SequenceId) -> bool {
        let life = self.life(sequence);
        self.rows.keys().any(|key| key.0 == life)
    }

    /// The mode changes: what is inside is no step any more.
    pub(crate) fn set_forwarding(&mut self, forwarding: Forwarding) {
        self.forwarding = forwarding;
        self.break_up();
    }

    fn break_up(&mut self) {
        for row in self.rows.values_mut() {
            row.step = None;
        }
    }
}
