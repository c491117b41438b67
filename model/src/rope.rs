//! Rotary position embedding: the frequencies a configuration asks for, and the rotation.
//!
//! The frequencies are computed once on load, in the steps and roundings of the reference
//! implementation (f32 where it uses f32), with `libm`'s own functions, so that they are the same on
//! every host. A scaling whose frequencies depend on the length of the sequence would change keys
//! that are already cached; it is offered only inside the context in which it does not.

use libm::{ceil, cos, floor, log, pow, sin, sqrt};

use crate::config::{Config, ConfigError};

/// How the rotated part of a head is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Pairs are `(i, i + dim / 2)`.
    Halves,
    /// Pairs are `(2 i, 2 i + 1)`.
    Interleaved,
}

/// Rotary frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rope {
    /// One per pair, so half the rotated width.
    pub frequencies: Vec<f32>,
    /// Factor of cosine and sine.
    pub attention_factor: f32,
    /// Layout of the pairs.
    pub layout: Layout,
    /// What the scaling is called in the configuration, `default` without one.
    pub kind: String,
    /// Longest sequence for which the frequencies hold, if the scaling limits it.
    pub context_limit: Option<usize>,
}

/// What a family knows of its rotation before it looks at the scaling.
#[derive(Debug, Clone, Copy)]
pub struct RopeDefaults {
    /// Width of a head (of its rotated part, for latent attention).
    pub head_dim: usize,
    /// `rope_theta` where the file has none.
    pub theta: f64,
    /// Layout of the pairs.
    pub layout: Layout,
}

impl Rope {
    /// Width of the rotated part of a head.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Reads `rope_theta` and `rope_scaling` (4.x style) or `rope_parameters` (5.x style).
    pub fn from_config(config: &Config, defaults: RopeDefaults) -> Result<Self, ConfigError> {
        Self::new(config, Self::parameters(config)?.as_ref(), defaults)
    }

    /// `rope_scaling` if there is one that is not empty, else `rope_parameters`.
    pub fn parameters(config: &Config) -> Result<Option<Config>, ConfigError> {
        match config.object_or_none("rope_scaling")?.filter(|p| !p.is_empty()) {
            Some(parameters) => Ok(Some(parameters)),
            None => Ok(config.object_or_none("rope_parameters")?.filter(|p| !p.is_empty())),
        }
    }

    /// The same from an explicit set of parameters, for families whose default is not plain.
    pub fn new(
        config: &Config,
        parameters: Option<&Config>,
        defaults: RopeDefaults,
    ) -> Result<Self, ConfigError> {
        let number = |key: &str| match parameters {
            Some(p) => p.number_or_none(key),
            None => Ok(None),
        };
        let theta = match number("rope_theta")? {
            Some(theta) => theta,
            None => config.number_or("rope_theta", defaults.theta)?,
        };
        if theta <= 1.0 {
            return Err(config.invalid("rope_theta", "a number above 1"));
        }
        let partial = match number("partial_rotary_factor")? {
            Some(factor) => factor,
            None => config.number_or("partial_rotary_factor", 1.0)?,
        };
        let dim = (defaults.head_dim as f64 * partial) as usize;
        if !(partial > 0.0 && partial <= 1.0) || dim == 0 || !dim.is_multiple_of(2) {
            return Err(config.refuse(
                format!("a rotated width of {dim} (head width {} x {partial})", defaults.head_dim),
                "it must be even, above 0 and at most the head's width",
            ));
        }
        let kind = match parameters {
            None => None,
            // The older key is `type`; files that carry both mean the newer one.
            Some(p) => p.text_or_none("rope_type")?.or(p.text_or_none("type")?),
        };
        let kind = kind.unwrap_or("default").to_string();
        let plain = Plain::new(theta, dim);
        let mut rope = Self {
            frequencies: plain.frequencies(),
            attention_factor: 1.0,
            layout: defaults.layout,
            kind: kind.clone(),
            context_limit: None,
        };
        let Some(parameters) = parameters else { return Ok(rope) };
        match kind.as_str() {
            "default" => {}
            "linear" => {
                let factor = parameters.number("factor")? as f32;
                rope.frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            "dynamic" => {
                parameters.number("factor")?;
                let context = config.size("max_position_embeddings")?;
                let original = parameters.size_or_none("original_max_position_embeddings")?;
                rope.context_limit = Some(original.map_or(context, |o| o.min(context)));
            }
            "llama3" => rope.scale_llama3(config, parameters)?,
            "yarn" => rope.scale_yarn(config, parameters, &plain)?,
            "longrope" => rope.scale_long(config, parameters, &plain)?,
            _ => {
                let key = if parameters.has("rope_type") { "rope_type" } else { "type" };
                return Err(parameters
                    .unsupported(key, "supported are default, linear, dynamic, yarn, longrope and llama3"));
            }
        }
        Ok(rope)
    }

    fn scale_llama3(&mut self, config: &Config, parameters: &Config) -> Result<(), ConfigError> {
        let factor = parameters.number("factor")? as f32;
        let low = parameters.number("low_freq_factor")? as f32;
        let high = parameters.number("high_freq_factor")? as f32;
        let original = original_context(config, parameters)? as f32;
        for f in &mut self.frequencies {
            let wavelength = (2.0 * std::f64::consts::PI) as f32 / *f;
            if wavelength > original / low {
                *f /= factor;
            } else if wavelength >= original / high {
                let smooth = (original / wavelength - low) / (high - low);
                *f = (1.0 - smooth) * *f / factor + smooth * *f;
            }
        }
        Ok(())
    }

    fn scale_yarn(&mut self, config: &Config, parameters: &Config, plain: &Plain) -> Result<(), ConfigError> {
        let original = original_context(config, parameters)? as f64;
        let factor = match parameters.number_or_none("factor")? {
            Some(factor) => factor,
            None => config.size("max_position_embeddings")? as f64 / original,
        };
        let mscale = parameters.number_or("mscale", 0.0)?;
        let mscale_all = parameters.number_or("mscale_all_dim", 0.0)?;
        let attention_factor = match parameters.number_or_none("attention_factor")? {
            Some(given) => given,
            None if mscale != 0.0 && mscale_all != 0.0 => {
                yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
            }
            None => yarn_mscale(factor, 1.0),
        };
        // As in the reference, zero counts as absent.
        let or = |value: f64, default: f64| if value == 0.0 { default } else { value };
        let beta_fast = or(parameters.number_or("beta_fast", 0.0)?, 32.0);
        let beta_slow = or(parameters.number_or("beta_slow", 0.0)?, 1.0);
        let dim = plain.dim as f64;
        let correction = |rotations: f64| {
            dim * log(original / (rotations * 2.0 * std::f64::consts::PI)) / (2.0 * log(plain.theta))
        };
        let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
        if parameters.flag_or("truncate", true)? {
            (low, high) = (floor(low), ceil(high));
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let (low, span) = (low as f32, (high - low) as f32);
        for (i, f) in self.frequencies.iter_mut().enumerate() {
            let power = plain.power(i);
            let ramp = ((i as f32 - low) / span).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            let (extrapolated, interpolated) = (1.0 / power, 1.0 / (factor as f32 * power));
            *f = interpolated * (1.0 - keep) + extrapolated * keep;
        }
        self.attention_factor = attention_factor as f32;
        Ok(())
    }

    fn scale_long(&mut self, config: &Config, parameters: &Config, plain: &Plain) -> Result<(), ConfigError> {
        let original = original_context(config, parameters)?;
        let context = config.size("max_position_embeddings")?;
        let factor = parameters.number_or("factor", context as f64 / original as f64)?;
        self.attention_factor = match parameters.number_or_none("attention_factor")? {
            Some(given) => given as f32,
            None if factor <= 1.0 => 1.0,
            None => sqrt(1.0 + log(factor) / log(original as f64)) as f32,
        };
        let wrong = || parameters.invalid("short_factor", "a list of one number per rotated pair");
        let short = parameters.value("short_factor").and_then(|v| v.as_array()).ok_or_else(wrong)?;
        if short.len() != self.frequencies.len() {
            return Err(wrong());
        }
        for (i, (f, short)) in self.frequencies.iter_mut().zip(short).enumerate() {
            let short = short.as_f64().ok_or_else(wrong)? as f32;
            *f = 1.0 / (short * plain.power(i));
        }
        self.context_limit = Some(original);
        Ok(())
    }

    /// Writes cosine and sine of every pair at `position`.
    pub fn angles(&self, position: usize, cosines: &mut [f32], sines: &mut [f32]) {
        for ((f, c), s) in self.frequencies.iter().zip(cosines).zip(sines) {
            // The product is rounded to f32 as in the reference; at long contexts that shows.
            let angle = f64::from(position as f32 * f);
            *c = cos(angle) as f32 * self.attention_factor;
            *s = sin(angle) as f32 * self.attention_factor;
        }
    }

    /// Rotates the first [`Rope::dim`] values of `head` in place.
    pub fn rotate(&self, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let half = self.frequencies.len();
        match self.layout {
            Layout::Halves => {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
            Layout::Interleaved => {
                for ((pair, c), s) in head[..2 * half].chunks_exact_mut(2).zip(cosines).zip(sines) {
                    (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                }
            }
        }
    }
}

/// The context before scaling: at the top of the file, else among the parameters, else the context.
fn original_context(config: &Config, parameters: &Config) -> Result<usize, ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    match (config.size_or_none(KEY)?, parameters.size_or_none(KEY)?) {
        (Some(original), _) | (None, Some(original)) => Ok(original),
        (None, None) => config.size("max_position_embeddings"),
    }
}

/// The factor by which YaRN raises attention for a scaling `factor`.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * log(factor) + 1.0 }
}

/// Frequencies without scaling.
struct Plain {
    theta: f64,
    dim: usize,
}

impl Plain {
    fn new(theta: f64, dim: usize) -> Self {
        Self { theta, dim }
    }

    /// `theta ^ (2 i / dim)`, with the f32 steps of the reference.
    fn power(&self, i: usize) -> f32 {
        let exponent = (2 * i) as f32 / self.dim as f32;
        pow(f64::from(self.theta as f32), f64::from(exponent)) as f32
    }

    fn frequencies(&self) -> Vec<f32> {
        (0..self.dim / 2).map(|i| 1.0 / self.power(i)).collect()
    }
}
