//! Which devices share a link, and which fail together.
//!
//! Pure. Groups are nested, the outermost first and nodes last: what is made even among racks stays even while it is
//! made even among the nodes of each.

use std::collections::BTreeMap;

use super::Request;
use super::board::Place;
use super::check::domain_name;

/// The devices that are open, and for each level of links the group of each.
pub(super) fn places_and_groups(request: &Request<'_>) -> (Vec<Place>, Vec<Vec<usize>>) {
    let links = &request.constraints.links;
    let is_used = |label: &String| request.cluster.nodes().iter().any(|node| node.labels.contains_key(label));
    let links: Vec<&String> = links.iter().filter(|label| is_used(label)).collect();
    let (mut places, mut groups) = (Vec::new(), vec![Vec::new(); links.len() + 1]);
    let (mut paths, mut domains) = (vec![BTreeMap::new(); links.len() + 1], BTreeMap::new());
    for node in request.cluster.nodes() {
        // Groups are nested: host 1 of one rack is not host 1 of another.
        let own = format!("node {}", node.id.0);
        let mut path: Vec<String> =
            links.iter().map(|label| node.labels.get(*label).unwrap_or(&own).clone()).collect();
        path.push(own.clone());
        for (seat, memory) in request.cluster.open_seats().filter(|(seat, _)| seat.node == node.id) {
            let domain = number(&mut domains, domain_name(request, node));
            for (level, groups) in groups.iter_mut().enumerate() {
                groups.push(number(&mut paths[level], path[..=level].to_vec()));
            }
            places.push(Place::new(seat, memory, domain));
        }
    }
    (places, groups)
}

/// Numbers in the order in which the keys come.
fn number<K: Ord>(known: &mut BTreeMap<K, usize>, key: K) -> usize {
    let next = known.len();
    *known.entry(key).or_insert(next)
}

/// For each level, the groups of the level below each of its groups; below nodes are devices.
pub(super) fn below(groups: &[Vec<usize>], loads: &[Vec<u64>]) -> Vec<Vec<Vec<usize>>> {
    let of_level = |level: usize| {
        let mut below = vec![Vec::new(); loads[level].len()];
        for (place, group) in groups[level].iter().enumerate() {
            let inner = groups.get(level + 1).map_or(place, |groups| groups[place]);
            if !below[*group].contains(&inner) {
                below[*group].push(inner);
            }
        }
        below
    };
    (0..groups.len()).map(of_level).collect()
}
