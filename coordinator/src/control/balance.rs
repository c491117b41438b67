//! Which bias answers begin with: looked after, remembered, and told to whoever asks.
//!
//! A shell around `bias` and `versions`.

use std::sync::Arc;
use std::time::Instant;

use actix::{Handler, Message, MessageResult};
use model::bias::Bias;
use serde_json::{Value, json};

use super::actor::ControlActor;
use super::bias::Balancer;
use super::events::Kind;

/// The bias that answers begin with now, or the one whose digest begins so, if it is known.
#[derive(Message)]
#[rtype(result = "Option<Arc<Bias>>")]
pub struct BiasOf(pub Option<[u8; 4]>);

impl Handler<BiasOf> for ControlActor {
    type Result = MessageResult<BiasOf>;

    fn handle(&mut self, BiasOf(beginning): BiasOf, _: &mut Self::Context) -> Self::Result {
        let versions = &self.parts.versions;
        let version = match beginning {
            Some(beginning) => versions.find(beginning),
            None => versions.current(),
        };
        MessageResult(version.map(|version| Arc::clone(&version.bias)))
    }
}

impl ControlActor {
    /// Has overloaded experts chosen less, if it is time and any is overloaded.
    pub(super) fn balance(&mut self, now: Instant) {
        let Some(balancer) = self.parts.balancer.as_mut().filter(|_| !self.is_leaving) else { return };
        let Some(bias) = balancer.handle_look(&self.loads, now) else { return };
        let (bias, (largest, mean)) = (Arc::new(bias), balancer.sizes());
        let digest = bias.digest();
        let (number, gone) = self.parts.versions.add(Arc::clone(&bias));
        // Stored before anybody begins under it: nothing else happens meanwhile.
        if let Err(why) = self.parts.store.store_bias(number, &bias) {
            tracing::warn!(%why, number, "a bias cannot be stored; streams under it do not outlive this coordinator");
        }
        for number in gone {
            if let Err(why) = self.parts.store.forget_bias(number) {
                tracing::debug!(%why, number, "an old bias stays where it was stored");
            }
        }
        let digest = digest.to_string();
        tracing::info!(number, digest, largest, mean, "answers begin with another bias");
        let text = format!(
            "bias {number} ({digest:.12}): at most {largest:.3}, {mean:.3} on average; answers that begin now choose experts \
             under it"
        );
        self.events.handle(Kind::Biased, None, text, now);
    }

    /// How it is balanced, for people; null where replicas are chosen and nothing else.
    pub(super) fn told_bias(&self) -> Value {
        let Some(balancer) = &self.parts.balancer else { return Value::Null };
        let version = self.parts.versions.current();
        let (largest, mean) = balancer.sizes();
        // A bias as a person writes it, and not all digits of its bits.
        let short = |value: f32| (f64::from(value) * 1e6).round() / 1e6;
        let layers = balancer.imbalances().map(|(layer, imbalance)| {
            let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
            json!({ "layer": layer, "before": rounded(imbalance.before), "now": rounded(imbalance.now) })
        });
        json!({
            "version": version.map_or(0, |version| version.number),
            "digest": version.map(|version| version.bias.digest().to_string()),
            "known": self.parts.versions.count(),
            "max": short(balancer.settings().max),
            "largest": short(largest),
            "mean": short(mean),
            "layers": layers.collect::<Vec<_>>(),
        })
    }

    /// When the next look is due.
    pub(super) fn balance_due(&self) -> Option<Instant> {
        self.parts.balancer.as_ref().map(Balancer::poll_timeout)
    }
}
