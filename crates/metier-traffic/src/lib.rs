//! What goes over the wire, what it costs, and what in it is personal.
//!
//! Which question: *what did the caller say, in a form that cannot be wrong, and what is a token worth?* In go bytes and
//! tables of prices; out come typed requests, answers in the protocol's own shape, and picodollars. Deliberately absent: HTTP,
//! sockets, clocks, and any opinion on who should answer.

pub mod exchange;
pub mod logs;
pub mod price;
pub mod privacy;
pub mod said;
pub mod synthetic;
pub mod wire;

pub use exchange::Exchange;
pub use price::{PriceBook, PriceError};
