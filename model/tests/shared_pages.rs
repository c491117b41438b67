//! Pages that sequences share: the same bits as if each had its own, and every page comes back once.

mod support;

use phalanx_model::kv::{PAGE, Sequence, SharedPage};
use phalanx_model::plain::Run;
use support::{Class, FIXTURES, Loop, Random, assert_bits, fixture};

fn compute(model: &mut Loop, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    model.step_all(&mut [Run { sequence, tokens }])
}

/// What a prefix cache does, in every class: a second sequence begins with pages of the first, both go on side by side, a
/// third has computed the same for itself and gives its own pages back. Logits and what the cache keeps are those of
/// sequences alone.
#[test]
fn shared_pages_give_the_bits_of_own_ones() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    for name in FIXTURES {
        for class in &Class::all() {
            let what = format!("{name}, {}", class.class);
            let mut model = Loop::open(&fixture(name), class.class, 2);
            let (vocab, free) = (model.vocab(), model.cache.free());
            let prefix = random.tokens(2 * PAGE, vocab);
            let tails = [random.tokens(30, vocab), random.tokens(70, vocab)];
            let alone = tails.each_ref().map(|tail| {
                let mut sequence = Sequence::default();
                let logits = compute(&mut model, &mut sequence, &[&prefix[..], tail].concat());
                let kept = model.kept(&sequence, 0);
                model.cache.release(sequence);
                (logits[2 * PAGE * vocab..].to_vec(), kept)
            });

            let mut first = Sequence::default();
            compute(&mut model, &mut first, &prefix);
            let shared = [0, 1].map(|index| model.cache.share(&mut first, index));
            let mut second = Sequence::default();
            shared.iter().for_each(|page| model.cache.adopt(&mut second, page));
            assert_eq!((second.len(), second.writable_from()), (2 * PAGE, 2 * PAGE));
            let logits = model.step_all(&mut [
                Run { sequence: &mut first, tokens: &tails[0] },
                Run { sequence: &mut second, tokens: &tails[1] },
            ]);
            let (of_first, of_second) = logits.split_at(tails[0].len() * vocab);

            let mut third = Sequence::default();
            compute(&mut model, &mut third, &prefix);
            let before = model.cache.free();
            (0..2).for_each(|index| model.cache.replace(&mut third, index, &shared[index]));
            assert_eq!(model.cache.free(), before + 2, "{what}: its own pages came back");
            let of_third = compute(&mut model, &mut third, &tails[0]);

            for (logits, sequence, (wanted, kept)) in [
                (of_first, &first, &alone[0]),
                (of_second, &second, &alone[1]),
                (of_third.as_slice(), &third, &alone[0]),
            ] {
                assert_bits(logits, wanted, vocab, 2 * PAGE, &what);
                assert_bits(&model.kept(sequence, 0), kept, kept.len() / sequence.len(), 0, &what);
            }

            // Whoever lets go last frees: here the cache of prefixes.
            [first, second, third].into_iter().for_each(|sequence| model.cache.release(sequence));
            assert_eq!(model.cache.free(), free - 2, "{what}");
            shared.into_iter().for_each(|page: SharedPage| model.cache.forget(page));
            assert_eq!(model.cache.free(), free, "{what}");
        }
    }
}

/// A page that has another holder is safe from whoever does not keep to the rules.
#[test]
#[should_panic(expected = "nobody writes to a page that is shared")]
fn a_shared_page_is_not_written() {
    let class = &Class::all()[0];
    let mut model = Loop::open(&fixture("qwen3moe"), class.class, 1);
    let mut sequence = Sequence::default();
    compute(&mut model, &mut sequence, &[1; PAGE]);
    let _kept = model.cache.share(&mut sequence, 0);
    let Loop { trunk, pool, work, cache, .. } = &mut model;
    let span = phalanx_model::attention::Span { sequence: &sequence, start: PAGE - 1, rows: 0..1 };
    trunk.embed(work, &[1], std::slice::from_ref(&span));
    trunk.attend(pool, work, 0, cache, &[span]);
}
