//! The calendar of budgets: in which window a moment lies. Pure; the time zones are those this program was built with.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::{AmbiguousOffset, TimeZone};
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
/// A day begins at the first moment that has its date or a later one, wherever the clocks are put. So days follow each
/// other: where a clock goes back over midnight, the day that has begun goes on.
pub fn bounds(
    period: Period,
    timezone: Option<&str>,
    at: Duration,
) -> Result<(Duration, Option<Duration>), WindowError> {
    match period {
        Period::Total => Ok((Duration::ZERO, None)),
        Period::Minute => even(60, at),
        Period::Hour => even(3_600, at),
        Period::Day | Period::Week | Period::Month => civil(period, &zone(timezone)?, at),
    }
}

/// Windows of so many seconds, from 1970 on.
fn even(seconds: u64, at: Duration) -> Result<(Duration, Option<Duration>), WindowError> {
    let starts = at.as_secs() - at.as_secs() % seconds;
    let ends = starts.checked_add(seconds).ok_or(WindowError::Beyond { at })?;
    Ok((Duration::from_secs(starts), Some(Duration::from_secs(ends))))
}

fn civil(period: Period, zone: &TimeZone, at: Duration) -> Result<(Duration, Option<Duration>), WindowError> {
    let beyond = || WindowError::Beyond { at };
    let moment = i64::try_from(at.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let date = moment.ok_or_else(beyond)?.to_zoned_datetime(zone.clone()).date();
    let window = |date: Date| {
        let (first, next) = dates(period, date).ok_or_else(beyond)?;
        let (starts, ends) = (begins(first, zone).ok_or_else(beyond)?, begins(next, zone).ok_or_else(beyond)?);
        Ok((next, starts, ends))
    };
    let (next, starts, ends) = window(date)?;
    if ends > at {
        return Ok((starts, Some(ends)));
    }
    // The clock went back over midnight: the next date has begun already.
    let (_, starts, ends) = window(next)?;
    Ok((starts, Some(ends)))
}

/// The first date of the window that a date lies in, and the first of the next.
fn dates(period: Period, date: Date) -> Option<(Date, Date)> {
    let first = match period {
        Period::Week => date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()?,
        Period::Month => date.first_of_month(),
        Period::Total | Period::Minute | Period::Hour | Period::Day => date,
    };
    let length = match period {
        Period::Week => 1.week(),
        Period::Month => 1.month(),
        Period::Total | Period::Minute | Period::Hour | Period::Day => 1.day(),
    };
    Some((first, first.checked_add(length).ok()?))
}

/// The first moment of a date, or of the next where it is left out.
fn begins(date: Date, zone: &TimeZone) -> Option<Duration> {
    let midnight = date.at(0, 0, 0, 0);
    let moment = match zone.to_ambiguous_timestamp(midnight).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            offset.to_timestamp(midnight).ok()?
        }
        // By the later offset midnight would have been before the clock was put forward; that moment is meant.
        AmbiguousOffset::Gap { after, .. } => zone.following(after.to_timestamp(midnight).ok()?).next()?.timestamp(),
    };
    // Before 1970 there are no windows.
    Some(Duration::from_secs(u64::try_from(moment.as_second()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZoneDatabase;
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

    proptest! {
        /// Whatever a clock shows, there is a window or an error.
        #[test]
        fn no_moment_is_too_far(
            seconds in prop_oneof![any::<u64>(), u64::MAX - 4_000..=u64::MAX, 250_000_000_000..260_000_000_000_u64],
            zone in prop::sample::select(&ZONES[..]),
        ) {
            for period in [Period::Total, Period::Minute, Period::Hour, Period::Day, Period::Week, Period::Month] {
                if let Ok((starts, ends)) = bounds(period, Some(zone), Duration::from_secs(seconds)) {
                    prop_assert!(starts.as_secs() <= seconds && ends.is_none_or(|ends| ends.as_secs() > seconds));
                }
            }
        }
    }

    /// Wherever clocks were ever put, in all zones there are: a day begins at the first moment of its date, each moment lies
    /// in one, and they follow each other.
    #[test]
    fn days_begin_at_their_first_moment_wherever_clocks_are_put() {
        let database = TimeZoneDatabase::bundled();
        let mut looked = 0;
        for name in database.available() {
            let zone = database.get(name.as_str()).unwrap();
            let put = zone.following(Timestamp::UNIX_EPOCH).map(|put| put.timestamp().as_second());
            for put in put.take_while(|put| *put < 1_800_000_000) {
                for moment in [-86_400, -5_400, -1, 0, 1, 1_800, 5_400, 86_400].map(|step| put + step) {
                    let moment = u64::try_from(moment).unwrap_or_default();
                    check_day(name.as_str(), &zone, moment);
                    looked += 1;
                }
            }
        }
        assert!(looked > 100_000, "{looked}");
    }

    fn check_day(name: &str, zone: &TimeZone, moment: u64) {
        let day = |seconds: u64| {
            let (starts, ends) = civil(Period::Day, zone, Duration::from_secs(seconds)).unwrap();
            (starts.as_secs(), ends.unwrap().as_secs())
        };
        let date = |seconds: u64| {
            Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap().to_zoned_datetime(zone.clone()).date()
        };
        let (starts, ends) = day(moment);

        assert!(starts <= moment && moment < ends, "{name} {moment}: {starts} {ends}");
        assert_eq!((day(starts), day(ends - 1)), ((starts, ends), (starts, ends)), "{name} {moment}");
        assert_eq!(day(ends).0, ends, "{name} {moment}");
        assert!(date(ends - 1) < date(ends), "{name} {moment}");
    }

    /// Just after midnight clocks went back to the day before: that is not lived twice.
    #[test]
    fn a_day_that_has_begun_does_not_end_by_a_clock_put_back() {
        let day = |moment: &str| bounds(Period::Day, Some("America/St_Johns"), at(moment)).unwrap();
        let begun = (at("2006-10-29T02:30:00Z"), Some(at("2006-10-30T03:30:00Z")));

        assert_eq!(day("2006-10-29T02:30:30Z"), begun, "00:00:30 on the 29th");
        assert_eq!(day("2006-10-29T02:45:00Z"), begun, "23:15 on the 28th, again");
        assert_eq!(day("2006-10-29T02:29:59Z").1, Some(begun.0));
    }

    #[test]
    fn a_midnight_that_is_left_out_begins_with_what_follows() {
        let (starts, ends) = bounds(Period::Day, Some("America/Santiago"), at("2019-09-08T12:00:00Z")).unwrap();
        assert_eq!((starts, ends), (at("2019-09-08T04:00:00Z"), Some(at("2019-09-09T03:00:00Z"))), "01:00, 23 hours");
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
