//! The steps as the kernel sees them: a global function for each one, of each family.

use crate::{outcome::Outcome, skb::Skb};

/// The steps of [`crate::decide`], of one family, and those of what has steps beside it.
///
/// Each is a global function, without arguments but the context: see [`steps`].
pub trait Steps {
    /// Keeps a fragment until its datagram's first one comes.
    fn hold(skb: &Skb) -> Outcome;
    /// Lets the other fragments follow a first one.
    fn follow(skb: &Skb) -> Outcome;
    /// Step 1.
    fn begin(skb: &Skb) -> Outcome;
    /// Step 2.
    fn recognise(skb: &Skb) -> Outcome;
    /// Step 3, of a known flow.
    fn translate(skb: &Skb) -> Outcome;
    /// Step 3, of what may go to a service.
    fn serve(skb: &Skb) -> Outcome;
    /// Step 3, of a connection to it whose client's view is gone: one backend.
    fn ask_backend(skb: &Skb) -> Outcome;
    /// Step 3, of anything else that does: the backend.
    fn elect(skb: &Skb) -> Outcome;
    /// Step 4: where it goes.
    fn locate(skb: &Skb) -> Outcome;
    /// Steps 2 to 4 of an ICMP error.
    fn read_quote(skb: &Skb) -> Outcome;
    /// See [`Self::read_quote`].
    fn relate(skb: &Skb) -> Outcome;
    /// What an ICMP error quotes becomes what its sender knows.
    fn requote_error(skb: &Skb) -> Outcome;
    /// The error itself does.
    fn readdress(skb: &Skb) -> Outcome;
    /// Step 4: the way out of the node.
    fn leave(skb: &Skb) -> Outcome;
    /// Step 5.
    fn permit(skb: &Skb) -> Outcome;
    /// Step 6: the other end's view, with the flow's own port.
    fn claim_back(skb: &Skb) -> Outcome;
    /// Step 6: the other end's view, with another port.
    fn claim_port(skb: &Skb) -> Outcome;
    /// Step 6: the client's view, restored by a reply.
    fn store_front(skb: &Skb) -> Outcome;
    /// Makes the packet the RST that answers it.
    fn reset(skb: &Skb) -> Outcome;
    /// Makes the packet the ICMP error about it.
    fn unreachable(skb: &Skb) -> Outcome;
    /// Step 6: the client's view, or the only one.
    fn store(skb: &Skb) -> Outcome;
}

/// Makes the global functions of a family, and the [`Steps`] that call them.
///
/// The verifier walks a global function once, and not once per way that leads to it. It knows nothing
/// of what such a function is given but the context, so everything else is in [`crate::decide::Work`].
macro_rules! steps {
    ($family:ty; $($step:ident: $name:ident = $body:path;)+) => {
        mod steps {
            use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

            use super::*;

            $(
                #[unsafe(no_mangle)]
                #[inline(never)]
                pub extern "C" fn $name(context: *mut __sk_buff) -> u64 {
                    // For the verifier, which wants the context even of callers of a step without use
                    // for it; and so the compiler must find one.
                    if context.is_null() {
                        return 0;
                    }
                    let skb = $crate::skb::Skb::new(TcContext::new(context));
                    $crate::outcome::Outcome::pack($body(&skb)).number()
                }
            )+
        }

        impl $crate::decide::Steps for $family {
            $(
                #[inline(always)]
                fn $step(skb: &$crate::skb::Skb) -> $crate::outcome::Outcome {
                    $crate::outcome::Outcome::from_number(steps::$name(skb.raw()))
                }
            )+
        }
    };
}

pub(crate) use steps;
