//! Numeric classes, instruction paths, and which of them this CPU can run.
//!
//! A *class* says what a result is, bit for bit; a *path* says which instructions compute it. Portable and f32
//! results are the same on every path. A [`Kernels`] is a class and a path that was found able to run
//! here, so whoever holds one may use the path's instructions.
//!
//! Pure but for asking the CPU what it has.

use std::fmt;
use std::str::FromStr;

use super::limits;

/// What a result is, bit for bit: the same class gives the same bits on any host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NumericClass {
    /// BF16 or f32 weights, f32 rows: the accuracy oracle.
    F32,
    /// BF16 weights and rows, one fused multiply-add per k in ascending order.
    Portable,
    /// BF16 weights and rows, multiplied in pairs by `vdpbf16ps`.
    Avx512Bf16,
}

/// What a row is made of between layers, in the KV cache and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowType {
    /// Four bytes a value.
    F32,
    /// Two bytes a value.
    Bf16,
}

/// Which instructions compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Loops the compiler makes of what it finds: the oracle of the other paths, and the path of other CPUs.
    Plain,
    /// AVX2 and FMA, 8 lanes.
    Avx2,
    /// AVX-512F, 16 lanes; pairs by two multiply-adds each, with denormals flushed.
    Avx512f,
    /// AVX-512 BF16, 16 lanes of pairs.
    Avx512Bf16,
}

/// Why a class or a path cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The name is none of the classes.
    #[error("numeric class {name:?} is unknown; expected f32, portable or avx512bf16")]
    UnknownClass {
        /// What was given.
        name: String,
    },
    /// This CPU lacks an instruction. Nothing was changed.
    #[error("the path {path} needs {feature}, which this CPU lacks; use the numeric class portable")]
    Missing {
        /// The path asked for.
        path: Path,
        /// What it needs.
        feature: &'static str,
    },
    /// The path computes another class.
    #[error("the path {path} does not compute the numeric class {class}")]
    Unfit {
        /// The class asked for.
        class: NumericClass,
        /// The path asked for.
        path: Path,
    },
    /// Every path of the class failed its self-test. The messages say how.
    #[error("no path computes the numeric class {class} correctly here: {reason}")]
    Rejected {
        /// The class asked for.
        class: NumericClass,
        /// What each path did.
        reason: String,
    },
}

/// A class and a path that can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernels {
    class: NumericClass,
    path: Path,
}

impl Kernels {
    /// The fastest that this CPU can run.
    pub fn best() -> Kernels {
        let class = match Path::Avx512Bf16.missing_feature() {
            None => NumericClass::Avx512Bf16,
            Some(_) => NumericClass::Portable,
        };
        Kernels::for_class(class).expect("the plain path runs on every CPU")
    }

    /// The fastest path of a class.
    pub fn for_class(class: NumericClass) -> Result<Kernels, KernelError> {
        let mut refusal = None;
        for &path in class.paths() {
            match Kernels::new(class, path) {
                Ok(kernels) => return Ok(kernels),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.expect("every class has a path"))
    }

    /// A given path of a class; also the plain one of `avx512bf16`, which is an oracle and slow.
    pub fn new(class: NumericClass, path: Path) -> Result<Kernels, KernelError> {
        if path != Path::Plain && !class.paths().contains(&path) {
            return Err(KernelError::Unfit { class, path });
        }
        match path.missing_feature() {
            Some(feature) => Err(KernelError::Missing { path, feature }),
            None => Ok(Kernels { class, path }),
        }
    }

    /// What the results are.
    pub fn class(self) -> NumericClass {
        self.class
    }

    /// What computes them. This CPU can run it.
    pub fn path(self) -> Path {
        self.path
    }
}

impl NumericClass {
    /// All classes.
    pub const ALL: [NumericClass; 3] = [NumericClass::F32, NumericClass::Portable, NumericClass::Avx512Bf16];

    /// What rows are made of in this class.
    pub fn row_type(self) -> RowType {
        match self {
            NumericClass::F32 => RowType::F32,
            NumericClass::Portable | NumericClass::Avx512Bf16 => RowType::Bf16,
        }
    }

    /// The paths that compute this class at speed, fastest first.
    pub fn paths(self) -> &'static [Path] {
        match self {
            NumericClass::F32 | NumericClass::Portable => &[Path::Avx512f, Path::Avx2, Path::Plain],
            // Two multiply-adds do what one instruction for pairs does, and on some CPUs in less time.
            NumericClass::Avx512Bf16 if limits::pairs_are_slow() => &[Path::Avx512f, Path::Avx512Bf16],
            NumericClass::Avx512Bf16 => &[Path::Avx512Bf16, Path::Avx512f],
        }
    }
}

impl RowType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            RowType::F32 => 4,
            RowType::Bf16 => 2,
        }
    }
}

impl Path {
    /// What this CPU lacks to run the path, if anything.
    pub fn missing_feature(self) -> Option<&'static str> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                if !std::arch::is_x86_feature_detected!("avx2") {
                    Some("avx2")
                } else if !std::arch::is_x86_feature_detected!("fma") {
                    Some("fma")
                } else {
                    None
                }
            };
            let avx512 = || {
                avx2().or(if !std::arch::is_x86_feature_detected!("avx512f") {
                    Some("avx512f")
                } else if !std::arch::is_x86_feature_detected!("avx512bw") {
                    Some("avx512bw")
                } else {
                    None
                })
            };
            match self {
                Path::Plain => None,
                Path::Avx2 => avx2(),
                Path::Avx512f => avx512(),
                Path::Avx512Bf16 => {
                    avx512().or((!std::arch::is_x86_feature_detected!("avx512bf16")).then_some("avx512bf16"))
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            match self {
                Path::Plain => None,
                Path::Avx2 => Some("x86-64 with avx2"),
                Path::Avx512f => Some("x86-64 with avx512f"),
                Path::Avx512Bf16 => Some("x86-64 with avx512bf16"),
            }
        }
    }
}

impl fmt::Display for NumericClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NumericClass::F32 => "f32",
            NumericClass::Portable => "portable",
            NumericClass::Avx512Bf16 => "avx512bf16",
        })
    }
}

impl FromStr for NumericClass {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<NumericClass, KernelError> {
        NumericClass::ALL
            .into_iter()
            .find(|class| class.to_string() == name)
            .ok_or_else(|| KernelError::UnknownClass { name: name.to_owned() })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Plain => "plain",
            Path::Avx2 => "avx2",
            Path::Avx512f => "avx512f",
            Path::Avx512Bf16 => "avx512bf16",
        })
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Plain, Self::Avx2, Self::Avx512f, Self::Avx512Bf16];
        let named = all.into_iter().find(|path| path.to_string() == text);
        named.ok_or_else(|| format!("`{text}` is none of plain, avx2, avx512f, avx512bf16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names go to classes and back.
    #[test]
    fn names_round_trip() {
        for class in NumericClass::ALL {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        assert!("bf16".parse::<NumericClass>().is_err());
    }

    /// A path of another class is refused by name.
    #[test]
    fn a_path_of_another_class_is_refused() {
        let error = Kernels::new(NumericClass::Portable, Path::Avx512Bf16);
        assert_eq!(error, Err(KernelError::Unfit { class: NumericClass::Portable, path: Path::Avx512Bf16 }));
        assert!(Kernels::new(NumericClass::Avx512Bf16, Path::Plain).is_ok());
    }
}
