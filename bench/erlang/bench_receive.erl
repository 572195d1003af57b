%%% The bridge as a receiver: a node that listens. One process takes everything, as the server of a
%%% node in the field does, and checks and counts each message.
-module(bench_receive).

-export([main/0]).

-spec main() -> no_return().
main() ->
    Options = bench_work:options(),
    Tally = bench_work:new_tally(bench_work:option("size", Options)),
    Self = self(),
    _ = spawn_link(fun() -> listen(Self, Tally) end),
    Port = receive {port, Number} -> Number end,
    bench_work:say("ready port=~b", [Port]),
    answer(Tally).

answer(Tally) ->
    case bench_work:next() of
        "await " ++ Count ->
            ok = bench_work:report(Tally, list_to_integer(Count)),
            answer(Tally);
        _QuitOrEof ->
            halt(0)
    end.

listen(Parent, Tally) ->
    {Cert, Key} = bench_work:identity(),
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, [{cert, Cert}, {key, Key}]),
    {ok, Listener} = macula_quic:async_accept(Listener, #{}),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    Parent ! {port, Port},
    serve(Listener, Tally).

serve(Listener, Tally) ->
    receive
        {quic, Data, _Stream, _} when is_binary(Data) ->
            ok = bench_work:note_time(Tally),
            ok = bench_work:count(Data, Tally),
            serve(Listener, Tally);
        {quic, new_conn, Conn, _} ->
            {ok, Conn} = macula_quic:handshake(Conn),
            {ok, Conn} = macula_quic:async_accept_stream(Conn, #{}),
            {ok, Listener} = macula_quic:async_accept(Listener, #{}),
            serve(Listener, Tally);
        {quic, new_stream, Stream, #{conn := Conn}} ->
            {ok, Conn} = macula_quic:async_accept_stream(Conn, #{}),
            ok = macula_quic:setopt(Stream, active, true),
            serve(Listener, Tally);
        {quic, peer_send_shutdown, Stream, _} ->
            ok = macula_quic:close_stream(Stream),
            serve(Listener, Tally);
        {quic, _What, _Handle, _} ->
            serve(Listener, Tally)
    end.
