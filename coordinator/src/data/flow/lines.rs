//! Lines in which numbered places wait: first in, first out, and any of them may step out.
//!
//! Pure. The links of all places are taken once, so a step costs a few writes and never allocates. A place stands in
//! at most one line of the same [`Links`] at a time.

/// No place.
pub(crate) const NONE: u32 = u32::MAX;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for Line {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

impl Line {
    /// Places in it.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who has waited longest.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Who came last.
    pub(crate) fn last(&self) -> Option<u32> {
        (self.last != NONE).then_some(self.last)
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// Who stands before and after whom.
#[derive(Debug)]
pub(crate) struct Links(Vec<Link>);

impl Links {
    /// Links for so many places, none of them in a line.
    pub(crate) fn new(places: usize) -> Self {
        Self(vec![Link { before: NONE, after: NONE }; places])
    }

    /// Joins at the end.
    pub(crate) fn push_back(&mut self, line: &mut Line, place: u32) {
        self.0[place as usize] = Link { before: line.last, after: NONE };
        match line.last {
            NONE => line.first = place,
            last => self.0[last as usize].after = place,
        }
        line.last = place;
        line.len += 1;
    }

    /// Joins at the front.
    pub(crate) fn push_front(&mut self, line: &mut Line, place: u32) {
        self.0[place as usize] = Link { before: NONE, after: line.first };
        match line.first {
            NONE => line.last = place,
            first => self.0[first as usize].before = place,
        }
        line.first = place;
        line.len += 1;
    }

    /// Joins before another that stands in `line`, or else at the end.
    pub(crate) fn insert(&mut self, line: &mut Line, place: u32, next: Option<u32>) {
        let Some(next) = next else { return self.push_back(line, place) };
        let before = self.0[next as usize].before;
        self.0[place as usize] = Link { before, after: next };
        self.0[next as usize].before = place;
        match before {
            NONE => line.first = place,
            before => self.0[before as usize].after = place,
        }
        line.len += 1;
    }

    /// Steps out, from wherever it stands in `line`.
    pub(crate) fn remove(&mut self, line: &mut Line, place: u32) {
        let Link { before, after } = self.0[place as usize];
        match before {
            NONE => line.first = after,
            before => self.0[before as usize].after = after,
        }
        match after {
            NONE => line.last = before,
            after => self.0[after as usize].before = before,
        }
        line.len -= 1;
    }

    /// Takes who has waited longest.
    pub(crate) fn pop_front(&mut self, line: &mut Line) -> Option<u32> {
        let first = line.first()?;
        self.remove(line, first);
        Some(first)
    }

    /// Who stands after `place`.
    pub(crate) fn after(&self, place: u32) -> Option<u32> {
        let after = self.0[place as usize].after;
        (after != NONE).then_some(after)
    }

    /// Who stands before `place`.
    pub(crate) fn before(&self, place: u32) -> Option<u32> {
        let before = self.0[place as usize].before;
        (before != NONE).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(links: &Links, line: &Line) -> Vec<u32> {
        std::iter::successors(line.first(), |&place| links.after(place)).collect()
    }

    /// Every way in and out, at both ends and in the middle.
    #[test]
    fn places_join_at_either_end_and_leave_from_anywhere() {
        let mut links = Links::new(8);
        let mut line = Line::default();
        for place in [3, 1, 4] {
            links.push_back(&mut line, place);
        }
        links.push_front(&mut line, 5);
        assert_eq!(all(&links, &line), [5, 3, 1, 4]);
        links.insert(&mut line, 6, Some(5));
        links.insert(&mut line, 7, Some(4));
        links.insert(&mut line, 2, None);
        assert_eq!((all(&links, &line), line.len()), (vec![6, 5, 3, 1, 7, 4, 2], 7));
        [6, 7, 2].into_iter().for_each(|place| links.remove(&mut line, place));
        assert_eq!((line.len(), line.last(), links.before(1)), (4, Some(4), Some(3)));
        links.remove(&mut line, 1);
        assert_eq!(all(&links, &line), [5, 3, 4]);
        links.remove(&mut line, 4);
        assert_eq!((all(&links, &line), line.last()), (vec![5, 3], Some(3)));
        assert_eq!(links.pop_front(&mut line), Some(5));
        assert_eq!(links.pop_front(&mut line), Some(3));
        assert_eq!((links.pop_front(&mut line), line), (None, Line::default()));
    }
}
