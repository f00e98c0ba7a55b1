//! The calendar of budgets: in which window a moment lies. Pure; the time zones are those this program was built with.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::directory::budget::Period;

/// Why there is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("`{name}` is no time zone")]
    Timezone { name: String },
    #[error("{at:?} after 1970 is beyond the calendar")]
    Beyond { at: Duration },
}

pub fn is_timezone(name: &str) -> bool {
    zone(Some(name)).is_ok()
}

fn zone(name: Option<&str>) -> Result<TimeZone, WindowError> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    jiff::tz::TimeZoneDatabase::bundled().get(name).map_err(|_error| WindowError::Timezone { name: name.to_owned() })
}

/// When the window that `at` lies in began, and when it ends. Both since 1970, and `at` too; `None`: never.
///
/// A day begins at the first moment that has its date, wherever the clocks are put.
pub fn bounds(
    period: Period,
    timezone: Option<&str>,
    at: Duration,
) -> Result<(Duration, Option<Duration>), WindowError> {
    let even = |seconds: u64| {
        let start = at.as_secs() - at.as_secs() % seconds;
        Ok((Duration::from_secs(start), Some(Duration::from_secs(start + seconds))))
    };
    match period {
        Period::Total => Ok((Duration::ZERO, None)),
        Period::Minute => even(60),
        Period::Hour => even(3_600),
        Period::Day | Period::Week | Period::Month => civil(period, &zone(timezone)?, at),
    }
}

fn civil(period: Period, zone: &TimeZone, at: Duration) -> Result<(Duration, Option<Duration>), WindowError> {
    let beyond = || WindowError::Beyond { at };
    let moment = i64::try_from(at.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let date = moment.ok_or_else(beyond)?.to_zoned_datetime(zone.clone()).date();
    let (first, next) = match period {
        Period::Week => {
            let first = date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days());
            first.and_then(|first| Ok((first, first.checked_add(1.week())?)))
        }
        Period::Month => {
            let first = date.first_of_month();
            first.checked_add(1.month()).map(|next| (first, next))
        }
        Period::Total | Period::Minute | Period::Hour | Period::Day => {
            date.checked_add(1.day()).map(|next| (date, next))
        }
    }
    .map_err(|_error| beyond())?;
    let (starts, ends) = (begins(first, zone).ok_or_else(beyond)?, begins(next, zone).ok_or_else(beyond)?);
    Ok((starts, Some(ends)))
}

/// The first moment of a date, or of the next where it is left out.
fn begins(date: Date, zone: &TimeZone) -> Option<Duration> {
    let start = date.to_zoned_datetime(zone.clone()).ok()?;
    let seconds = start.timestamp().as_second();
    // Before 1970 there are no windows.
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZONES: [&str; 8] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/Santiago",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "Australia/Lord_Howe",
        "Africa/Cairo",
    ];

    fn at(text: &str) -> Duration {
        let moment: Timestamp = text.parse().unwrap();
        Duration::from_secs(u64::try_from(moment.as_second()).unwrap())
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_one_window_and_windows_follow_each_other(
            seconds in 0..4_000_000_000_u64,
            zone in prop::sample::select(&ZONES[..]),
            period in prop::sample::select(&[Period::Minute, Period::Hour, Period::Day, Period::Week, Period::Month][..]),
        ) {
            let moment = Duration::from_secs(seconds);
            let (starts, ends) = bounds(period, Some(zone), moment).unwrap();
            let ends = ends.unwrap();

            prop_assert!(starts <= moment && moment < ends);
            prop_assert_eq!(bounds(period, Some(zone), ends).unwrap().0, ends);
            let last = ends.saturating_sub(Duration::from_secs(1));
            prop_assert_eq!(bounds(period, Some(zone), last).unwrap(), (starts, Some(ends)));
        }
    }

    #[test]
    fn days_are_as_long_as_clocks_make_them() {
        let day = |moment: &str| {
            let (starts, ends) = bounds(Period::Day, Some("Europe/Berlin"), at(moment)).unwrap();
            ends.unwrap().saturating_sub(starts).as_secs() / 3_600
        };

        assert_eq!(day("2026-03-29T12:00:00Z"), 23);
        assert_eq!(day("2026-10-25T12:00:00Z"), 25);
        assert_eq!(day("2026-07-01T12:00:00Z"), 24);
    }

    #[test]
    fn months_and_weeks_begin_at_local_midnight() {
        let (starts, ends) = bounds(Period::Month, Some("Asia/Kathmandu"), at("2028-02-10T00:00:00Z")).unwrap();
        assert_eq!((starts, ends), (at("2028-01-31T18:15:00Z"), Some(at("2028-02-29T18:15:00Z"))));
        let (starts, _) = bounds(Period::Week, None, at("2026-11-28T03:00:00Z")).unwrap();
        assert_eq!(starts, at("2026-11-23T00:00:00Z"));
        // A day that did not exist.
        let (starts, ends) = bounds(Period::Day, Some("Pacific/Apia"), at("2011-12-30T09:00:00Z")).unwrap();
        assert_eq!((starts, ends), (at("2011-12-29T10:00:00Z"), Some(at("2011-12-30T10:00:00Z"))));
    }

    #[test]
    fn a_zone_that_is_none_is_refused() {
        assert!(is_timezone("Europe/Berlin") && is_timezone("UTC"));
        assert!(!is_timezone("Europe/Berlln") && !is_timezone("") && !is_timezone("../../etc/passwd"));
    }
}
