//! Why there is no placement: which constraint, by how much, and what would help.
//!
//! Pure.

use std::fmt;

/// Why there is no placement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody offers anything.
    #[error("the cluster offers no device; start a node, or wait for one that is not leaving")]
    NoDevice,

    /// One shard is larger than any device.
    #[error(
        "layer {layer}: {what} of {} does not fit any device, the largest offers {}: {} short; \
         add devices with more memory, or more shards", Bytes(*.needed), Bytes(*.offered), Bytes(.needed - .offered)
    )]
    Part {
        /// Of the model.
        layer: u32,
        /// An expert, or a shard of one.
        what: &'static str,
        /// Its bytes.
        needed: u64,
        /// The largest device.
        offered: u64,
    },

    /// All of it is larger than all devices.
    #[error(
        "{whose}: {experts} {what} need {}, {devices} {} {}: {} short; add devices or memory",
        Bytes(*.needed), devices_offer(*.devices), Bytes(*.offered), Bytes(.needed - .offered)
    )]
    Memory {
        /// A layer, or all of them.
        whose: Whose,
        /// How many.
        experts: u64,
        /// `experts of 3.1 MB`.
        what: String,
        /// Bytes of all of them, replicas and shards too.
        needed: u64,
        /// Devices that may be used.
        devices: u64,
        /// What they can hold of it: a remainder too small for a shard is not counted.
        offered: u64,
    },

    /// Too few devices for what may share one.
    #[error(
        "{whose}: {parts} {what} with at most {per_device} on a device need {needed} devices, the cluster has \
         {offered}: {} short; add devices{}", .needed - .offered, .instead
    )]
    Devices {
        /// A layer, or all of them.
        whose: Whose,
        /// How many.
        parts: u64,
        /// Experts, replicas or shards.
        what: &'static str,
        /// How many may share a device.
        per_device: u64,
        /// Devices needed.
        needed: u64,
        /// Devices that may be used.
        offered: u64,
        /// What else would help, with a comma before it.
        instead: &'static str,
    },

    /// Devices may serve too few layers.
    #[error(
        "{layers} layers need {needed} places for a layer on a device, {devices} devices with at most \
         {layers_max} layers each have {offered}: {} short; add devices, or raise max_layers_per_device",
         .needed - .offered
    )]
    Layers {
        /// Of the model, that send rows out.
        layers: u64,
        /// At least.
        needed: u64,
        /// Devices that may be used.
        devices: u64,
        /// The constraint.
        layers_max: u64,
        /// Places.
        offered: u64,
    },

    /// Replicas cannot fail apart.
    #[error(
        "{needed} replicas of an expert need {needed} failure domains ({label}), the cluster has {offered}: {} \
         short; add one, or ask for fewer replicas", .needed - .offered
    )]
    Domains {
        /// What a domain is.
        label: String,
        /// Replicas.
        needed: u64,
        /// Domains.
        offered: u64,
    },

    /// Every sum is right, and still no seat was found for one.
    #[error(
        "layer {layer} expert {expert}: none of {devices} devices can take it with the rest: {memory} lack \
         memory, {crowded} have their number of experts, {layers} their number of layers, {apart} share a \
         failure domain with a replica or not with a shard, {banned} have failed to load it; add a device, or loosen the constraint that most break"
    )]
    Seat {
        /// Of the model.
        layer: u32,
        /// Of the layer.
        expert: u32,
        /// Devices that may be used.
        devices: u64,
        /// Without enough memory.
        memory: u64,
        /// With as many experts as may share a device.
        crowded: u64,
        /// With as many layers as a device may serve.
        layers: u64,
        /// In the wrong failure domain.
        apart: u64,
        /// On nodes that have failed to load it.
        banned: u64,
    },
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// One layer.
    Layer(u32),
    /// All that send rows out.
    AllLayers(u64),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Layer(layer) => write!(f, "layer {layer}"),
            Whose::AllLayers(layers) => write!(f, "all {layers} layers"),
        }
    }
}

fn devices_offer(devices: u64) -> &'static str {
    if devices == 1 { "device has room for" } else { "devices have room for" }
}

/// Bytes as people read them.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
        if self.0 < 1000 {
            return write!(f, "{} B", self.0);
        }
        let (mut value, mut unit) = (self.0 as f64 / 1000.0, 0);
        while value >= 999.5 && unit + 1 < UNITS.len() {
            (value, unit) = (value / 1000.0, unit + 1);
        }
        let digits = if value < 9.95 { 1 } else { 0 };
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_two_or_three_figures() {
        let shown = [0, 999, 1000, 3_146_000, 198_000_000, 999_600, 58_720_256, 5_000_000_000_000_000];
        let shown: Vec<_> = shown.iter().map(|bytes| Bytes(*bytes).to_string()).collect();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "3.1 MB", "198 MB", "1.0 MB", "59 MB", "5000 TB"]);
    }
}
