%%% A stream that the user opened on a pooled connection, in either direction, with blocks of bytes.
-module(bench_bulk).

-export([write/0, read/0]).

%% @doc Writes blocks for so many seconds.
-spec write() -> no_return().
write() ->
    {Options, Stream} = open(),
    Blocks = bench_work:messages(bench_work:option("size", Options)),
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    Begin = erlang:monotonic_time(microsecond),
    Until = Begin + round(list_to_float(maps:get("seconds", Options)) * 1.0e6),
    Sent = rounds(Stream, Blocks, Until, 0),
    ok = macula_quic:async_shutdown_stream(Stream, 1, 0),
    Us = erlang:monotonic_time(microsecond) - Begin,
    bench_work:say("sent messages=~b seconds=~.6f", [Sent, Us / 1.0e6]),
    ok = bench_work:expect("quit"),
    halt(0).

rounds(Stream, Blocks, Until, Sent) ->
    case erlang:monotonic_time(microsecond) < Until of
        true ->
            ok = lists:foreach(fun(Block) -> ok = macula_quic:send(Stream, Block) end, Blocks),
            rounds(Stream, Blocks, Until, Sent + length(Blocks));
        false ->
            Sent
    end.

%% @doc Asks for so many seconds of blocks, which are protocol frames, and takes each as a message.
-spec read() -> no_return().
read() ->
    {Options, Stream} = open(),
    Tally = bench_work:new_tally(bench_work:option("size", Options)),
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    ok = macula_quic:setopt(Stream, active, true),
    ok = macula_quic:send(Stream, maps:get("seconds", Options)),
    ok = macula_quic:async_shutdown_stream(Stream, 1, 0),
    Count = take(Stream, Tally, 0),
    ok = bench_work:report(Tally, Count),
    ok = bench_work:expect("quit"),
    halt(0).

take(Stream, Tally, Count) ->
    receive
        {quic, Data, Stream, _} when is_binary(Data) ->
            ok = bench_work:note_time(Tally),
            ok = bench_work:count(Data, Tally),
            take(Stream, Tally, Count + 1);
        {quic, peer_send_shutdown, Stream, _} ->
            Count;
        {quic, send_shutdown_complete, Stream, _} ->
            take(Stream, Tally, Count)
    end.

open() ->
    Options = bench_work:options(),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    Address = {{127, 0, 0, 1}, bench_work:option("to", Options)},
    Node = <<1:256>>,
    {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, Node, Address),
    {ok, #{connection := Conn}} = macula_gateway_mesh:get_connection_info(Pool, Node),
    {ok, Stream} = macula_quic:open_stream(Conn),
    {Options, Stream}.
