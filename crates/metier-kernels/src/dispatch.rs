//! One kernel body, compiled once for each tier.

/// Makes `fn name(isa, args…)` that runs `body::<L>(args…)` with the lanes of the tier, each inside a function compiled
/// with that tier's target features. `body` must be `#[inline(always)]`, or it is compiled without them (right, but slow).
macro_rules! per_tier {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
        $vis fn $name(isa: $crate::tier::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) {
                    // SAFETY: this function is compiled with the features that `Avx2` needs.
                    unsafe { $body::<$crate::lanes::Avx2>($($arg),*) }
                }
                #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) {
                    // SAFETY: this function is compiled with the features that `Avx512` needs.
                    unsafe { $body::<$crate::lanes::Avx512>($($arg),*) }
                }
                match isa.tier() {
                    // SAFETY: an `Isa` of this tier exists only if the CPU was seen to have AVX2, FMA and F16C.
                    $crate::tier::Tier::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: an `Isa` of this tier exists only if the CPU was seen to have these AVX-512 parts.
                    $crate::tier::Tier::Avx512Vnni => return unsafe { avx512($($arg),*) },
                    $crate::tier::Tier::Scalar => {}
                }
            }
            let _ = isa;
            // SAFETY: `Scalar` needs no CPU feature.
            unsafe { $body::<$crate::lanes::Scalar>($($arg),*) }
        }
    };
}
