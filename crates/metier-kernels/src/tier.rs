//! Which instructions this CPU has. Chosen once, forced in tests, printed by `metier doctor`.

use std::{fmt, str::FromStr};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Plain Rust on arrays: the truth that the others are tested against, and what every CPU can run.
    Scalar,
    /// AVX2 with FMA and F16C: 256-bit registers, integer dots by 16-bit multiply-adds.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ) with VNNI: 512-bit registers, `vpdpbusd`.
    Avx512Vnni,
}

/// The name is no tier.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no kernel tier: expected `scalar`, `avx2` or `avx512-vnni`")]
pub struct UnknownTier(String);

impl Tier {
    /// All tiers, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512Vnni];

    /// The fastest tier of this CPU.
    pub fn detect() -> Self {
        Self::available().pop().expect("the scalar tier is always there")
    }

    /// The tiers of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|tier| tier.isa().is_some()).collect()
    }

    /// The tier of that name: `scalar`, `avx2` or `avx512-vnni`.
    pub fn parse(name: &str) -> Result<Self, UnknownTier> {
        Self::ALL.into_iter().find(|tier| tier.name() == name).ok_or_else(|| UnknownTier(name.to_owned()))
    }

    /// `scalar`, `avx2` or `avx512-vnni`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// The proof that this CPU has the tier, or `None` where it has not.
    pub fn isa(self) -> Option<Isa> {
        let present = match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        present.then_some(Isa(self))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

/// A tier that this CPU was seen to have. Only [`Tier::isa`] makes one, so a kernel that takes an `Isa` may use the
/// tier's instructions: that is the soundness argument of every dispatch in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Tier);

impl Isa {
    /// Plain Rust.
    pub const SCALAR: Self = Self(Tier::Scalar);

    /// The tier.
    pub fn tier(self) -> Tier {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for tier in Tier::ALL {
            assert_eq!(tier.to_string().parse::<Tier>().expect("a tier's own name"), tier);
        }
        assert!(Tier::parse("sse9").is_err());
        assert!(Tier::available().contains(&Tier::detect()));
        assert_eq!(Tier::available()[0], Tier::Scalar);
    }
}
