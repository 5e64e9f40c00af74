//! A result that crosses a BPF-to-BPF call.
//!
//! `Result<Action, Drop>` as the return type of a function that is not inlined would describe a Rust
//! enum with data in BTF, as a union whose members have offsets, and the kernel refuses such types
//! (`btf_union_check_meta`). So the few such functions return this number instead.

use weft_abi::drop::DropReason;

use crate::{drops::Drop, skb::Action};

/// `Result<Action, Drop>` in 64 bits: the rule in the upper half, then the reason, then the action.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Outcome(u64);

impl Outcome {
    /// Packs a result.
    #[inline(always)]
    pub fn pack(result: Result<Action, Drop>) -> Self {
        Self(match result {
            Ok(action) => action as u64,
            Err(drop) => u64::from(drop.rule) << 32 | (drop.reason as u64) << 8,
        })
    }

    /// The number, as a global function returns it.
    #[inline(always)]
    pub fn number(self) -> u64 {
        self.0
    }

    /// What a global function returned, which must have been packed.
    #[inline(always)]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Unpacks it.
    #[inline(always)]
    pub fn unpack(self) -> Result<Action, Drop> {
        let number = (self.0 >> 8) as u8;
        if number == 0 {
            return Ok(match self.0 & 3 {
                action if action == Action::Redirect as u64 => Action::Redirect,
                action if action == Action::Keep as u64 => Action::Keep,
                _ => Action::Pass,
            });
        }
        // SAFETY: `pack` put the number of a reason there, and only it makes outcomes.
        let reason = unsafe { core::mem::transmute::<u8, DropReason>(number) };
        Err(Drop {
            reason,
            rule: (self.0 >> 32) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for action in [Action::Pass, Action::Redirect, Action::Keep] {
            assert!(matches!(Outcome::pack(Ok(action)).unpack(), Ok(same) if same == action));
        }
        for reason in DropReason::ALL {
            let drop = Drop {
                reason: *reason,
                rule: 0xdead_beef,
            };
            match Outcome::pack(Err(drop)).unpack() {
                Err(same) => assert_eq!((same.reason, same.rule), (*reason, 0xdead_beef)),
                Ok(_) => panic!("{} became an action", reason.name()),
            }
        }
    }
}
