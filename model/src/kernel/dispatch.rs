//! One body, compiled once per instruction path, chosen when called.
//!
//! A body is an `#[inline(always)]` function over [`Fused`](super::fused::Fused), written as loops over
//! sixteen lanes that the compiler vectorises. The macro makes the copies, each with its instructions enabled, and a
//! safe function that takes a [`Kernels`](super::Kernels) and calls the copy of its path. The copies give the
//! same bits, because a vectorised loop does per lane what the scalar loop does.

/// Makes `pub fn name(kernels, arguments)` out of a generic body.
macro_rules! dispatched {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path) => {
        $(#[$attribute])*
        $visibility fn $name(kernels: $crate::kernel::Kernels, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernel::Path;
                use $crate::kernel::fused::{Instruction, Software};
                use $body as body;
                #[target_feature(enable = "fma")]
                fn plain_with_fma($($argument: $type),*) $(-> $result)? { body::<Instruction>($($argument),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? { body::<Instruction>($($argument),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw")]
                fn avx512($($argument: $type),*) $(-> $result)? { body::<Instruction>($($argument),*) }
                match kernels.path() {
                    // SAFETY: a `Kernels` exists only for a path whose features this CPU has.
                    Path::Avx2 => unsafe { avx2($($argument),*) },
                    // SAFETY: as above; both paths have these features.
                    Path::Avx512f | Path::Avx512Bf16 => unsafe { avx512($($argument),*) },
                    Path::Plain if std::arch::is_x86_feature_detected!("fma") => {
                        // SAFETY: the feature was found a line above.
                        unsafe { plain_with_fma($($argument),*) }
                    }
                    Path::Plain => body::<Software>($($argument),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = kernels;
                use $body as body;
                body::<$crate::kernel::fused::Native>($($argument),*)
            }
        }
    };
}
pub(super) use dispatched;
